"""Plug-ins are found by their entry points, imported when they are used, and named when they cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import deelbo
from deelbo import plugins
from deelbo.plugins import Plugin, Registry
from tests.helpers.plugins import write_dataset, write_plugin

Place = Callable[..., None]
ROOT = Path(deelbo.__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Write plug-ins whose numbers a registry finds, each in a module of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._entry_points.cache_clear()

    def write(distribution: str, module: str, text: str, **points: str) -> None:
        entry_points = {"deelbo.numbers": {name: f"{module}:{attribute}" for name, attribute in points.items()}}
        write_plugin(tmp_path, distribution, {module: text}, entry_points)

    yield write
    plugins._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.startswith("plugged_")]:
        del sys.modules[name]


def numbers() -> Registry[int]:
    return Registry("number", {"one": 1}, lambda _, found: None if isinstance(found, int) else "it is no int")


def test_a_plugin_adds_names(place: Place) -> None:
    """A name of a plug-in is found as a built-in one; its distribution and module are known without an import."""
    place("toy-numbers", "plugged_good", "TWO, THREE = 2, 3", two="TWO", three="THREE")
    registry = numbers()
    assert registry.plugin("two") == Plugin("toy-numbers", "1.0", "plugged_good")
    assert "two" in registry
    assert "plugged_good" not in sys.modules
    assert [registry.find(name) for name in ("one", "two", "three")] == [1, 2, 3]
    assert registry.names() == ["one", "three", "two"]
    assert (registry.plugin("one"), registry.plugin("four")) == (None, None)
    assert registry.loaded() == {"two": 2, "three": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('over')", "SystemExit: over"),
        ("1 / 0", "ZeroDivisionError"),
        ("def TWO(: pass", "SyntaxError"),
        ("", "AttributeError"),
        ("TWO = 'two'", "it is no int"),
    ],
)
def test_a_plugin_that_cannot_be_used(place: Place, text: str, problem: str) -> None:
    """It is named in one line with the reason, also for an unknown name, and the others work."""
    place("bad-numbers", "plugged_bad", text, two="TWO")
    place("toy-numbers", "plugged_good", "THREE = 3", three="THREE")
    registry = numbers()
    with pytest.raises(ValueError, match=problem) as caught:
        registry.find("two")
    assert "the plug-in bad-numbers 1.0" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.find("three") == 3
    with pytest.raises(ValueError, match=r"number must be one of one, three \(the plug-in bad-numbers 1\.0") as caught:
        registry.find("four")
    assert problem in str(caught.value)
    assert str(caught.value).endswith("got 'four'")


def test_a_name_that_is_there_already(place: Place) -> None:
    """The built-in one wins, and of two plug-ins by one name neither is used; messages name all three."""
    place("first-numbers", "plugged_a", "ONE, TWO = 10, 2", one="ONE", two="TWO")
    place("second-numbers", "plugged_b", "TWO = 20", two="TWO")
    registry = numbers()
    assert registry.find("one") == 1
    with pytest.raises(
        ValueError, match=r"first-numbers 1\.0 and the plug-in second-numbers 1\.0 both have a number 'two'"
    ):
        registry.find("two")
    assert "first-numbers 1.0 has a number by the name of the built-in 'one'" in registry.describe()
    assert not {"plugged_a", "plugged_b"} & set(sys.modules)


def call(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_dataset_of_a_plugin(tmp_path: Path) -> None:
    """A plug-in's dataset is loaded by its name, with another size of images, and looking at it imports no torch."""
    write_dataset(tmp_path)
    code = "import sys; from deelbo.data import crop_size, load_task; "
    assert (
        call(tmp_path, f"{code}crop_size('CIFAR-10'); print('importlib.metadata' in sys.modules)").stdout == "False\n"
    )
    done = call(
        tmp_path, f"{code}task = load_task('rows', image_size=12); print(len(task.pool), task.transform.geometry.crop)"
    )
    assert done.stdout == "200 12\n", done.stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("def load(root): pass", "cannot be loaded (TypeError: load() takes 1 positional argument but 3 were given)"),
        ("def load(*_): raise SystemError('no disk')", "cannot be loaded (SystemError: no disk)"),
        ("def load(*_): return 7", "load returned int, expected deelbo.data.Task"),
        ("from dataclasses import replace\nENTRY = replace(ENTRY, pool_size='200')", "its pool_size is '200'"),
        ("ENTRY = load", "it is of the type function, expected deelbo.data.TaskEntry"),
    ],
)
def test_a_dataset_that_is_none(tmp_path: Path, change: str, problem: str) -> None:
    """What a plug-in gives in place of a dataset is refused in a line that names it."""
    write_dataset(tmp_path)
    with (tmp_path / "my_data.py").open("a") as file:
        file.write(f"\n{change}\n" + ("ENTRY = TaskEntry(load, 200, 40, 4, 1, 16)\n" if "def load" in change else ""))
    code = (
        "from deelbo.data import load_task\ntry:\n    load_task('rows')\nexcept ValueError as error:\n    print(error)"
    )
    done = call(tmp_path, code)
    assert done.stdout.startswith("the plug-in my-data 1.0"), done.stderr
    assert problem in done.stdout
    assert done.stdout.count("\n") == 1
