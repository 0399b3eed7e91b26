"""Trials: their specification, their record, and its JSON."""
