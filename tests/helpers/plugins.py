"""Small plug-ins on the search path: a module and a folder of metadata are all that an entry point needs."""

import re
from collections.abc import Mapping
from pathlib import Path

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
DATASET = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0]
"""The dataset of the guide: ``rows``, 200 grey images of 16 x 16 pixels in 4 classes."""


def write_plugin(
    folder: Path,
    name: str,
    modules: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
) -> None:
    """Write the distribution ``name`` into a folder: its modules, and its entry points as {group: {name: object}}."""
    folder.mkdir(parents=True, exist_ok=True)
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def write_dataset(folder: Path, version: str = "1.0") -> None:
    """Write the plug-in of the guide, with its dataset ``rows``."""
    write_plugin(folder, "my-data", {"my_data": DATASET}, {"deelbo.datasets": {"rows": "my_data:ENTRY"}}, version)
