"""`python -m bench`: the command line, as `deelbo-bench`."""

import sys

if __name__ == "__main__":
    # the current folder, which comes first on the search path, is for data, unless this package lies in it
    if not sys.flags.safe_path and __file__ != f"{sys.path[0]}/bench/__main__.py":
        del sys.path[0]

    from bench.cli.main import main

    raise SystemExit(main())
