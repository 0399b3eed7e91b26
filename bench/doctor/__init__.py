"""Checks of a cluster before a benchmark runs there: inspect it, then judge the report."""
