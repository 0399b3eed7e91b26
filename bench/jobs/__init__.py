"""Benchmarks as jobs of a Ray cluster, by its Job API."""

IN_JOB = "DEELBO_JOB"
"""The environment variable that is set inside a job of `deelbo-bench submit`."""
