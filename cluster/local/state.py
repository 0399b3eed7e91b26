"""What a cluster on this machine is made of, as its folder remembers it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.local.processes import alive, boot, family

__all__ = ["Part", "State", "temporary_folder"]

NAME = "state.json"
PLACE, PREFIX = "/tmp", "deelbo-"  # noqa: S108 - a folder of 0700 below it
"""Where what Ray keeps meanwhile is; not $TMPDIR: the paths of Ray's sockets must stay under 108 bytes."""


def temporary_folder() -> str:
    """A new one, of this user alone."""
    return tempfile.mkdtemp(prefix=PREFIX, dir=PLACE)


@dataclass(frozen=True)
class Part:
    """One process that was started: of that number, with that birth; what it says is in ``log``."""

    name: str
    pid: int
    born: str
    log: str

    @property
    def lives(self) -> bool:
        """Whether it is still that process, and runs."""
        return bool(alive({self.pid: self.born}))


@dataclass
class State:
    """A cluster: its parts in the order of their start, its ports, and the folder for what Ray keeps meanwhile.

    Attributes:
        folder: what stays: this state, the logs, MLflow's database and artifacts.
        temporary: what goes with the cluster: sockets, Ray's logs, the nodes' working directories.
        ports: by name: dashboard, mlflow, ray (the GCS) and client.
        token: whether Ray asks for a token.
        mark: the cluster's own name, in the environment of all of its processes.
    """

    folder: Path
    temporary: str
    ports: dict[str, int]
    token: bool
    workers: int
    boot: str = field(default_factory=boot)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    parts: list[Part] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """The cluster of a folder; None where there is none, or the machine was started anew since.

        Raises:
            ValueError: the folder's state is not one that was written here.
        """
        file = folder / NAME
        if not file.exists():
            return cls._without_folder(folder)
        try:
            state = cls._of({"folder": str(folder)} | json.loads(file.read_bytes()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{file} is no state of a cluster ({type(error).__name__}): remove it, and end what runs by hand"
            ) from None
        state.folder = folder  # it may have been moved
        return state if state.boot == boot() else None

    @classmethod
    def _without_folder(cls, folder: Path) -> State | None:
        """The cluster of a folder that somebody removed while it was up: by the copy among what Ray keeps meanwhile."""
        for copy in Path(PLACE).glob(f"{PREFIX}*/{NAME}"):
            with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                # everybody may write there, and processes will be ended: only from a folder of this user's own
                if any(place.lstat().st_uid != os.geteuid() for place in (copy, copy.parent)):
                    continue
                state = cls._of(json.loads(copy.read_bytes()))
                if (state.folder, state.temporary, state.boot) == (folder, str(copy.parent), boot()):
                    return state
        return None

    @classmethod
    def _of(cls, content: dict[str, Any]) -> State:
        parts = [Part(**part) for part in content.pop("parts")]
        return cls(folder=Path(content.pop("folder")), parts=parts, **content)

    def write(self) -> None:
        """Keeps it, whole or not at all."""
        text = json.dumps(asdict(self) | {"folder": str(self.folder)}, indent=2) + "\n"
        for place in (self.folder, Path(self.temporary)):
            new = place / f"{NAME}.new"
            new.write_text(text, encoding="utf-8")
            os.replace(new, place / NAME)

    def forget(self) -> None:
        """Removes it, and what was for the time being."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        (self.folder / NAME).unlink(missing_ok=True)

    @property
    def roots(self) -> dict[int, str]:
        """The processes that were started, with their births."""
        return {part.pid: part.born for part in self.parts}

    def processes(self) -> dict[int, str]:
        """All that runs of it."""
        return family(self.mark, self.roots)

    @property
    def dashboard(self) -> str:
        """What `deelbo-bench submit --address` takes."""
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    @property
    def mlflow(self) -> str:
        """What --tracking-uri takes."""
        return f"http://127.0.0.1:{self.ports['mlflow']}"
