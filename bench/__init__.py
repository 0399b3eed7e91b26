"""Benchmark service that compares methods for choosing the strength of L2 regularization."""
