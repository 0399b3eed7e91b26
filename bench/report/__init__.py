"""Presentation of results: figures, tables as Markdown and HTML, findings in sentences, and one page with all of it.

Matplotlib is imported here first, so that nothing of the user's can prevent it.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def _import_matplotlib() -> None:
    """Import matplotlib; if that fails on the user's settings, import it with its own."""
    try:
        import matplotlib as mpl
    except ValueError as error:  # $MPLBACKEND, or a matplotlibrc that is not UTF-8
        package = find_spec("matplotlib")
        if package is None or package.origin is None:
            raise
        own = {"MATPLOTLIBRC": str(Path(package.origin).with_name("mpl-data") / "matplotlibrc"), "MPLBACKEND": "agg"}
        users = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:  # what the attempt left behind
            del sys.modules[name]
        try:
            import matplotlib as mpl  # noqa: F401
        except ValueError:
            raise ValueError(f"matplotlib cannot be imported ({error}): correct or move ./matplotlibrc") from error
        finally:
            for name, value in users.items():
                os.environ.pop(name)
                os.environ.update({} if value is None else {name: value})


_import_matplotlib()
