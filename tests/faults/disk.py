"""The storage's disk is full: a small file system of its own in memory, and a file that takes up the rest of it."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.place import Place
from tests.faults.processes import Run
from tests.faults.proof import contents, in_mlflow, same_results, unchanged
from tests.faults.rows import SkippedError

SMALL, LARGE = "4m", "32m"


def fill_disk(times: int, place: Place) -> str:
    """It fills up while trials run, or as they write, or is full from the start, by turns; then there is room."""
    with small_disk(place.folder / "disk") as disk:
        storage, config, ballast = disk / "storage", place.config(), disk / "ballast"
        before: dict[str, bytes] = {}
        kept = []
        for turn in range(times):
            ballast.unlink(missing_ok=True)
            if turn % 3:
                fill(ballast, leave=place.random.randrange(8, 120) * 1024 if turn % 3 == 1 else 0)
            with Run(config, storage, str(turn)) as run:
                if turn % 3 == 0:
                    run.until_training()
                    run.until(lambda run=run: len(run.records()) >= 1, "a record")
                    time.sleep(place.random.uniform(0, 3 * place.account["trial"]))
                    fill(ballast, leave=0)
                complains_of_room(run, ballast)
            unchanged(before, storage)
            before = contents(storage)
            kept.append(len(before) // 2)
        make_room(disk)
        with Run(config, storage, "last") as run:
            run.ends_well()
        unchanged(before, storage)
        count = same_results(storage, place.reference, place.few)
        in_mlflow(storage / "mlflow.db", storage)
        assert not list(storage.rglob("*.part")), "files that were half written stay"
    return (
        f"exit code 2, one line that says to free space; {', '.join(map(str, kept))} of {count} records there then, "
        "none changed; with room it went on to the end"
    )


def complains_of_room(run: Run, ballast: Path) -> None:
    """Keep the disk full until the run ends with exit code 2 and one line that says what to do."""
    while run.runs():
        fill(ballast, leave=0)
        time.sleep(0.05)
    run.stops(2)
    lines = list(run.lines())
    assert len(lines) == 1, f"{len(lines)} lines on stderr: {run.complained}"
    assert "No space left" in lines[0], f"it does not say what is wrong: {lines[0]}"
    assert "free space" in lines[0], f"it does not say what to do: {lines[0]}"


def make_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={LARGE}", str(disk)], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise SkippedError("skipped: only root, where it may mount, can make a disk that is full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(file: Path, leave: int) -> None:
    """Takes all that is left of a disk but so many bytes, beside what the file has taken already."""
    state = os.statvfs(file.parent)
    with file.open("ab", buffering=0) as ballast:
        try:
            room = max(state.f_bavail * state.f_frsize - leave, 1)
            os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), room)
            while not leave:
                ballast.write(b"\0" * 4096)
        except OSError:
            return
