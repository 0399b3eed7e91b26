"""Inspection of a Ray cluster from inside; this package travels to the cluster with `doctor`'s job.

This file and `__main__.py` must be valid on every Python 3, so that a cluster with an older one can say so.
"""

MARKER = "DEELBO-FACTS "
"""Start of the line with the results, in a log that also contains Ray's lines."""
REQUEST_FILE = "request.json"
MIN_PYTHON = (3, 11)
