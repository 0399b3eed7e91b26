"""`python -m bench.probe`: inspect the cluster of this job, and print the results as one line of JSON."""

import json
import sys
from pathlib import Path

from bench.probe import MARKER, MIN_PYTHON, REQUEST_FILE


def main():  # type: ignore[no-untyped-def]
    """Print the results; whatever fails is part of them, never a traceback."""
    if sys.version_info >= MIN_PYTHON:
        from bench.probe.cluster import inspect_own_cluster

        report = inspect_own_cluster(json.loads(Path(REQUEST_FILE).read_text(encoding="utf-8")))
    else:
        python = "%d.%d.%d" % sys.version_info[:3]  # noqa: UP031
        report = {"problem": "Python " + python + " is too old, use a cluster of 3.11 or later", "nodes": []}
    print("\n" + MARKER + json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())  # type: ignore[no-untyped-call]
