"""Small plug-ins on the search path: a module and a folder of metadata are all that an entry point needs."""

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def read_example(guide: str, number: int = 0) -> str:
    """Return a piece of Python in a file of the documentation."""
    return re.findall(r"```python\n(.*?)```", (DOCS / guide).read_text(encoding="utf-8"), re.DOTALL)[number]


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
    """Write the plug-in of the guide: ``rows``, a dataset of 200 grey images of 16 x 16 pixels in 4 classes."""
    modules = {"my_data": read_example("plugins.md")}
    write_plugin(folder, "my-data", modules, {"deelbo.datasets": {"rows": "my_data:ENTRY"}}, version)


def write_backbone(folder: Path) -> None:
    """Write the plug-in my-nets of the guide: ``two-layers``, a network for grey images of 16 x 16 pixels."""
    modules = {"my_nets": read_example("plugins.md", 1)}
    write_plugin(folder, "my-nets", modules, {"deelbo.backbones": {"two-layers": "my_nets:ENTRY"}})


def write_method(folder: Path) -> None:
    """Write the plug-in my-method with the method of the guide to methods, ``rule-of-thumb``."""
    modules = {"my_method": read_example("methods.md")}
    write_plugin(folder, "my-method", modules, {"deelbo.methods": {"rule-of-thumb": "my_method:RuleOfThumb"}})
