"""Replay of methods on a finished grid: a table answers instead of training."""
