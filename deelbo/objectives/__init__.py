"""Objectives: what a training run minimizes."""
