"""A real Slurm on this machine: a controller and nodes, each in name spaces of its own (`tests.cluster.machines`).

munged, slurmctld and slurmd are started by hand, as root, and end with the block; their files are below one folder,
which is what the nodes share. A socket's path has 107 bytes at most, so that folder's must be short.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import machines
from tests.cluster.machines import NET, Machine

__all__ = ["Slurm", "missing", "slurm"]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
FREEZER = Path("/sys/fs/cgroup/freezer")
"""Where this machine has it, Slurm keeps track of processes as it does by itself: by control groups."""
TRACK = "cgroup" if (FREEZER / "tasks").exists() else "linuxproc"
CONF = """ClusterName=deelbo
SlurmUser=root
AuthInfo=socket={folder}/m.sock
SlurmctldHost=ctl({net}.2)
SlurmctldPort=22000
SlurmdPort=22001
SrunPortRange=22100-22300
StateSaveLocation={folder}/state
SlurmdSpoolDir=/tmp/spool
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/{track}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=20
KillWait={kill_wait}
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
INIT = """mkdir -p /tmp/cg/freezer /tmp/all
if [[ TRACK == cgroup ]]; then
  mount -t cgroup -o freezer none /tmp/all && mkdir /tmp/all/$0 && mount --bind /tmp/all/$0 /tmp/cg/freezer || exit
fi
"$@" &
wait $!
""".replace("TRACK", TRACK)
"""First process of a node: has a part of the control groups for the node, and waits for orphans, as slurmd does not."""


def missing() -> str:
    """Why there can be no Slurm here, or nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge"
    return "" if machines.possible() else "needs root, ip and unshare"


@dataclass(frozen=True)
class Slurm:
    """A Slurm that is up.

    Attributes:
        folder: what all its nodes share.
        environment: of its commands.
        nodes: by their names.
        before: what was in each node's /tmp when it came up.
    """

    folder: Path
    environment: dict[str, str]
    nodes: dict[str, Machine]
    before: dict[str, list[str]]

    def call(self, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, as a user calls it."""
        environment = self.environment | variables
        return subprocess.run(
            words, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, ExitCode, ..."""
        said = self.call("scontrol", "show", "job", number).stdout.split()
        return dict(word.split("=", 1) for word in said if "=" in word)

    def inside(self, node: str, *words: str) -> list[str]:
        """The lines that a command prints on a node."""
        outer = self.nodes[node].process.pid
        first = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
        line = ["nsenter", "-t", first, "-m", "-p", *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()

    def processes(self, node: str) -> list[str]:
        """Names of a node's processes but for slurmd."""
        lines = [line.split(maxsplit=1) for line in self.inside(node, "ps", "-e", "-o", "pid=", "-o", "comm=")]
        return [name for pid, name in lines if pid != "1" and name not in ("slurmd", "ps")]

    def temporary(self, node: str) -> list[str]:
        """What is in a node's /tmp, but for what was there when it came up."""
        return [file for file in self._listed(node) if file not in self.before[node]]

    def _listed(self, node: str) -> list[str]:
        return self.inside(node, "ls", "-A", "/tmp")  # noqa: S108 - the node's own


@contextmanager
def slurm(folder: Path, names: Sequence[str], cpus: int = 1, gpus: int = 0, kill_wait: int = 90) -> Iterator[Slurm]:
    """A controller and a node of each name, idle; ``gpus`` are devices that nobody can compute on, and ``kill_wait`` is
    the time in seconds from scancel to SIGKILL: Slurm's own 30 are short on a machine with much else to do."""
    conf, key = folder / "slurm.conf", folder / "key"
    for one in ("state", "logs"):
        (folder / one).mkdir()
    nodes = [f"NodeName={name} NodeAddr={NET}.{3 + i} CPUs={cpus} Gres=gpu:h100:{gpus}" for i, name in enumerate(names)]
    conf.write_text(CONF.format(folder=folder, net=NET, track=TRACK, kill_wait=kill_wait, nodes="\n".join(nodes)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/tmp/cg\n")
    devices = [folder / f"gpu{i}" for i in range(gpus)]
    for device in devices:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null: slurmd looks for a device, of any kind
    (folder / "gres.conf").write_text("".join(f"Name=gpu Type=h100 File={device}\n" for device in devices))
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "SBATCH_"))}
    up = Slurm(folder, inherited | {"SLURM_CONF": str(conf)}, {}, {})
    groups = f"deelbo-{os.getpid()}-{{}}"
    munged = _munged(folder, key)
    try:
        with machines.machines(folder, folder / "logs") as start:
            start("ctl", ["env", f"SLURM_CONF={conf}", "slurmctld", "-D"])
            for name in names:
                init = ["bash", "-c", INIT, groups.format(name)]
                up.nodes[name] = start(name, [*init, "env", f"SLURM_CONF={conf}", "slurmd", "-D"])
            until = time.monotonic() + 60
            while up.call("sinfo", "-h", "-t", "idle", "-o", "%D").stdout.strip() != str(len(names)):
                logs = "\n".join(file.read_text()[-1000:] for file in (folder / "logs").iterdir())
                assert time.monotonic() < until, logs
                time.sleep(0.3)
            up.before.update({name: up._listed(name) for name in names})
            yield up
    finally:
        munged.terminate()
        munged.wait()
        for name in names:
            for group, _, _ in os.walk(FREEZER / groups.format(name), topdown=False):
                os.rmdir(group)


def _munged(folder: Path, key: Path) -> subprocess.Popen[bytes]:
    """Slurm's own way of telling who calls; one for all nodes, as they are of one kernel."""
    files = [f"--{name}-file={folder}/m.{name}" for name in ("pid", "log", "seed")]
    line = ["munged", "--foreground", "--force", f"--socket={folder}/m.sock", f"--key-file={key}", *files]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while not (folder / "m.sock").exists():
        assert process.poll() is None and time.monotonic() < until, "munged does not start"  # noqa: PT018
        time.sleep(0.1)
    return process
