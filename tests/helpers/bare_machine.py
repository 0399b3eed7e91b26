"""An environment in which Python has the library's dependencies alone, and none of the extras'."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = (  # scipy is scikit-learn's, too
    *("ray", "mlflow", "mlxtend", "matplotlib", "pandas", "pydantic", "yaml", "rich", "safetensors", "fsspec"),
    *("filelock", "psutil", "optuna", "laplace", "prodigyopt", "schedulefree", "ivon"),
)
HIDE = f"""
import sys
from importlib.machinery import ModuleSpec

class Missing:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] in {EXTRAS!r} else None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Missing())
"""


def bare_environment(folder: Path) -> dict[str, str]:
    """Return environment variables for Python processes, which import this checkout; ``folder`` is for a file."""
    (folder / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
