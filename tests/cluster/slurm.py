"""A real Slurm on this machine: a controller and nodes on simulated machines (`tests.cluster.machines`).

munged, slurmctld and slurmd run as root until the context ends; their files are in one folder, which the nodes share.
Its path must be short, as the path of a socket has at most 107 bytes.
"""

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

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
FREEZER = Path("/sys/fs/cgroup/freezer")
"""If this machine has it, Slurm tracks processes by control groups, as by default."""
PROCTRACK = "cgroup" if (FREEZER / "tasks").exists() else "linuxproc"
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
""".replace("TRACK", PROCTRACK)
"""First process of a node: mounts control groups of the node only, and reaps orphans, which slurmd does not."""


def missing() -> str:
    """Describe what this machine lacks to run Slurm; empty if nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge"
    return "" if machines.possible() else "needs root, ip and unshare"


@dataclass(frozen=True)
class Slurm:
    """A running Slurm.

    Attributes:
        folder: shared by all nodes.
        environment: of Slurm's commands.
        nodes: machines by name.
        initial_files: files in /tmp of each node when Slurm had started.
    """

    folder: Path
    environment: dict[str, str]
    nodes: dict[str, Machine]
    initial_files: dict[str, list[str]]

    def run(self, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm as a user does."""
        environment = self.environment | variables
        return subprocess.run(
            words, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def job(self, number: str) -> dict[str, str]:
        """Return the attributes of a job: JobState, ExitCode, ..."""
        output = self.run("scontrol", "show", "job", number).stdout.split()
        return dict(word.split("=", 1) for word in output if "=" in word)

    def run_on(self, node: str, *words: str) -> list[str]:
        """Run a command on a node and return the lines of its output."""
        outer = self.nodes[node].process.pid
        first = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
        line = ["nsenter", "-t", first, "-m", "-p", *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()

    def processes(self, node: str) -> list[str]:
        """Names of the processes on a node, except slurmd."""
        lines = [line.split(maxsplit=1) for line in self.run_on(node, "ps", "-e", "-o", "pid=", "-o", "comm=")]
        return [name for pid, name in lines if pid != "1" and name not in ("slurmd", "ps")]

    def new_files(self, node: str) -> list[str]:
        """Files in /tmp of a node that were not there initially."""
        return [file for file in self._list_tmp(node) if file not in self.initial_files[node]]

    def _list_tmp(self, node: str) -> list[str]:
        return self.run_on(node, "ls", "-A", "/tmp")  # noqa: S108 - on the node


@contextmanager
def slurm(folder: Path, names: Sequence[str], cpus: int = 1, gpus: int = 0, kill_wait: int = 90) -> Iterator[Slurm]:
    """Run a controller and nodes of these names until all are idle, then yield them.

    ``gpus`` are devices that cannot compute. ``kill_wait`` is the time in seconds from scancel to SIGKILL: Slurm's
    default of 30 is short on a busy machine.
    """
    conf, key = folder / "slurm.conf", folder / "key"
    for name in ("state", "logs"):
        (folder / name).mkdir()
    nodes = [f"NodeName={name} NodeAddr={NET}.{3 + i} CPUs={cpus} Gres=gpu:h100:{gpus}" for i, name in enumerate(names)]
    conf.write_text(CONF.format(folder=folder, net=NET, track=PROCTRACK, kill_wait=kill_wait, nodes="\n".join(nodes)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/tmp/cg\n")
    devices = [folder / f"gpu{i}" for i in range(gpus)]
    for device in devices:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null: slurmd requires any device
    (folder / "gres.conf").write_text("".join(f"Name=gpu Type=h100 File={device}\n" for device in devices))
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "SBATCH_"))}
    up = Slurm(folder, inherited | {"SLURM_CONF": str(conf)}, {}, {})
    groups = f"deelbo-{os.getpid()}-{{}}"
    munged = _start_munged(folder, key)
    try:
        with machines.machines(folder, folder / "logs") as start:
            start("ctl", ["env", f"SLURM_CONF={conf}", "slurmctld", "-D"])
            for name in names:
                init = ["bash", "-c", INIT, groups.format(name)]
                up.nodes[name] = start(name, [*init, "env", f"SLURM_CONF={conf}", "slurmd", "-D"])
            deadline = time.monotonic() + 60
            while up.run("sinfo", "-h", "-t", "idle", "-o", "%D").stdout.strip() != str(len(names)):
                logs = "\n".join(file.read_text()[-1000:] for file in (folder / "logs").iterdir())
                assert time.monotonic() < deadline, logs
                time.sleep(0.3)
            up.initial_files.update({name: up._list_tmp(name) for name in names})
            yield up
    finally:
        munged.terminate()
        munged.wait()
        for name in names:
            for group, _, _ in os.walk(FREEZER / groups.format(name), topdown=False):
                os.rmdir(group)


def _start_munged(folder: Path, key: Path) -> subprocess.Popen[bytes]:
    """Start Slurm's authentication service, one for all nodes, as they share a kernel."""
    files = [f"--{name}-file={folder}/m.{name}" for name in ("pid", "log", "seed")]
    line = ["munged", "--foreground", "--force", f"--socket={folder}/m.sock", f"--key-file={key}", *files]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (folder / "m.sock").exists():
        assert process.poll() is None and time.monotonic() < deadline, "munged does not start"  # noqa: PT018
        time.sleep(0.1)
    return process
