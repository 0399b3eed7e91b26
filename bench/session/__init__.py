"""One call of `run`, for the command line and for Python."""
