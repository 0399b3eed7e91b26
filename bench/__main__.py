"""`python -m bench`: the command line, as `deelbo-bench`."""

from bench.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
