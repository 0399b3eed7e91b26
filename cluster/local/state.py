"""What a cluster on this machine is made of, as its folder remembers it."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.local.processes import alive, boot, family

__all__ = ["Part", "State"]


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
        file = folder / "state.json"
        try:
            content = json.loads(file.read_bytes())
            parts = [Part(**part) for part in content.pop("parts")]
            state = cls(folder=folder, parts=parts, **content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{file} is no state of a cluster ({type(error).__name__}): remove it, and end what runs by hand"
            ) from None
        return state if state.boot == boot() else None

    def write(self) -> None:
        """Keeps it, whole or not at all."""
        content = asdict(self)
        del content["folder"]
        new = self.folder / "state.json.new"
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(new, self.folder / "state.json")

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
