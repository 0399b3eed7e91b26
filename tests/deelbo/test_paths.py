"""`~` in every path that the library is given, and folders where the user has no usable home."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deelbo.data.registry import cache_folder, data_folder, load_task
from deelbo.paths import expand_user
from deelbo.pretrained import embedded
from deelbo.pretrained.source_images import SourceImages
from deelbo.pretrained.swag_files import check_target
from deelbo.pretrained.tensor_files import read_file
from deelbo.pretrained.weights import read_weights


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another current folder that stays empty."""
    folders = tmp_path / "home", tmp_path / "here"
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv("HOME", str(folders[0]))
    monkeypatch.chdir(folders[1])
    for name in ("DEELBO_CACHE", "DEELBO_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folders[0]


def test_a_leading_tilde_is_the_home_folder(home: Path) -> None:
    """As in a shell: ~ and ~NAME at the start alone; a folder by that name is ./~."""
    assert expand_user("~/x") == home / "x"
    assert expand_user("~root") == Path(os.path.expanduser("~root"))
    for path in ("./~", "x/~", "/x~", "x", ""):
        assert expand_user(path) == Path(path)
    with pytest.raises(ValueError, match=r"^~no-such-user/x: no home folder is known for ~no-such-user: give the full"):
        expand_user("~no-such-user/x")


@pytest.mark.parametrize("variable", ["DEELBO_CACHE", "DEELBO_DATA", "XDG_CACHE_HOME"])
def test_variables_may_hold_a_tilde(variable: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of a file that no shell reads is expanded, too."""
    monkeypatch.setenv(variable, "~/x")
    assert (home / "x") in (cache_folder(), cache_folder().parent, data_folder())


READERS: list[Callable[[str], object]] = [
    lambda name: read_file(f"{name}.pt"),
    lambda name: read_weights("resnet50", f"{name}.pt"),
    lambda name: check_target(f"{name}/x.pt"),
    lambda name: SourceImages(name, 32),
    lambda name: load_task("CIFAR-10", name),
]


@pytest.mark.parametrize("read", READERS)
def test_readers_look_in_the_home_folder(read: Callable[[str], object], home: Path) -> None:
    """What is missing there is named by its full path."""
    with pytest.raises(ValueError, match=f"{home}/missing"):
        read("~/missing")


def test_a_user_without_a_home_is_told_of_the_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user may have no home at all."""
    monkeypatch.setattr(os.path, "expanduser", str)
    with pytest.raises(ValueError, match=r"no home folder is known for ~: .*\): set \$DEELBO_CACHE to one"):
        cache_folder()
    monkeypatch.setenv("DEELBO_CACHE", "/cache")
    assert data_folder() == Path("/cache/data")


@pytest.mark.parametrize("place", ["/proc/nonexistent", "a file"])
def test_a_cache_that_cannot_be_written(place: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is trained all the same, and one line names the variable."""
    (home / "a file").touch()
    monkeypatch.setenv("HOME", str(home / place))
    recipe, lines = embedded.Recipe(epochs=1, swag_epochs=5), list[str]()
    trained = embedded.pretrain(recipe)
    monkeypatch.setattr(embedded, "pretrain", lambda _: trained)
    assert embedded.load_pretrained(recipe, lines.append) is trained
    assert len(lines) == 2
    assert lines[1].startswith(f"it cannot be kept for later ({home / place}/.cache/deelbo: ")
    assert lines[1].endswith("set $DEELBO_CACHE to a folder that can be written")
