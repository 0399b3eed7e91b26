"""Measure the time of a training step."""
