"""Hosts that are reached by SSH, on this one: each a name space of network, mounts, processes and host name, with an
sshd and a user of its own, who is not root. They share the installed code and the folder /mnt/deelbo.

The network between them is in the name space of the machine that submits: nothing of it is seen outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

OWN = str(os.getpid())
"""In the names of networks, as two test runs may be at it at once."""
ROOT = Path(__file__).resolve().parents[2]
USER, NUMBER = "deelbo", 4242
SHARED = "/mnt/deelbo"
SUBMITTING = "192.168.0.1"

# An empty /tmp, /home, /root and /run, and in them what is kept: held elsewhere while they are covered.
INIT = """set -e
hostname "$NAME"
mount -t tmpfs none /mnt
i=0
for kept in $KEPT "$FOLDER" "$SHARE"; do
  i=$((i + 1)); mkdir /mnt/$i; mount --bind "$kept" /mnt/$i
done
for covered in /tmp /home /root /run; do mount -t tmpfs -o mode=755 none $covered; done
chmod 1777 /tmp
i=0
for kept in $KEPT; do
  i=$((i + 1)); mkdir -p "$kept"; mount --move /mnt/$i "$kept"
done
mkdir -p /run/sshd /run/host /run/share
mount --move /mnt/$((i + 1)) /run/host
mount --move /mnt/$((i + 2)) /run/share
umount /mnt
mount -t tmpfs none /mnt
mkdir $SHARED
mount --move /run/share $SHARED
mount --bind /run/host/passwd /etc/passwd
cp -r /etc/skel /home/$USER
mkdir -m 700 /home/$USER/.ssh
cp /run/host/id_ed25519* /home/$USER/.ssh/ 2> /dev/null || true
ln -s $PREFIX /home/$USER/deelbo-venv
chown -hR $NUMBER:$NUMBER /home/$USER
touch /run/ready
while true; do sleep 3600 & wait; done
"""
"""Ends in a bash, as something must take in the processes that their parents left."""

SSHD = """Port 22
ListenAddress {ip}
HostKey /run/host/host_key
AuthorizedKeysFile /run/host/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile /run/sshd.pid
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Host:
    """One of them.

    Attributes:
        name: its host name.
        ip: its address, which the others reach.
        folder: its own part of this machine: keys, logs.
        process: `unshare`; with it all processes of the host end.
    """

    name: str
    ip: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def first(self) -> int:
        """The host's first process, by its number here."""
        numbers = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(numbers[0])

    def line(self, command: Sequence[str], root: bool = False, variables: Mapping[str, str] | None = None) -> list[str]:
        """What runs a command on the host, as its user."""
        who = [] if root else ["--setuid", str(NUMBER), "--setgid", str(NUMBER)]
        into = ["nsenter", "--target", str(self.first), "--mount", "--pid", "--net", "--uts", *who]
        home = "/root" if root else f"/home/{USER}"
        path = f"{home}/deelbo-venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        given = {"HOME": home, "USER": "root" if root else USER, "PATH": path, "LANG": "C.UTF-8"} | dict(
            variables or {}
        )
        return [*into, "env", "-i", "-C", home, *(f"{name}={value}" for name, value in given.items()), *command]

    def run(
        self, *command: str, seconds: float = 240, variables: Mapping[str, str] | None = None, root: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host; stderr is in its stdout."""
        return subprocess.run(
            self.line(command, root, variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
            check=False,
        )

    def listen(self) -> None:
        """Starts its sshd, and waits until it answers."""
        with (self.folder / "sshd.log").open("ab") as log:
            server = self.line([_where("sshd") or "sshd", "-f", "/run/host/sshd", "-D", "-e"], root=True)
            subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + 20
        while self.run("bash", "-c", f"exec 3<> /dev/tcp/{self.ip}/22").returncode:
            assert time.monotonic() < until, (self.folder / "sshd.log").read_text()
            time.sleep(0.1)

    def deafen(self) -> None:
        """Ends its sshd."""
        assert self.run("bash", "-c", "kill $(cat /run/sshd.pid)", root=True).returncode == 0


def missing() -> str:
    """What these hosts need and this machine has not; empty where it has all."""
    if os.geteuid():
        return "needs root: hosts of name spaces are made"
    programs = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "curl": "curl"}
    packages = [package for name, package in programs.items() if _where(name) is None]
    if packages:
        return f"needs `apt-get install {' '.join(packages)}`; no service need run"
    script = "ip link add br0 type bridge && mount -t tmpfs none /mnt"
    done = subprocess.run(["unshare", "-mpun", "--fork", "sh", "-c", script], check=False, capture_output=True)
    return "needs name spaces, which this root may not make" if done.returncode else ""


def _where(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def hosts(work: Path, addresses: Mapping[str, str]) -> Iterator[dict[str, Host]]:
    """The machine that submits, as "submitting", and hosts by their names and ``addresses``; ``work``/shared is their
    /mnt/deelbo. Their sshds are started, and all ends with the context."""
    shared = work / "shared"
    shared.mkdir()
    os.chown(shared, NUMBER, NUMBER)
    made: dict[str, Host] = {}
    with ExitStack() as stack:
        for name, ip in ({"submitting": SUBMITTING} | dict(addresses)).items():
            folder = work / name
            folder.mkdir()
            _files(folder, ip, made)
            space = f"deelbo-{OWN}-{name}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space)
            _ip("-n", space, "link", "set", "lo", "up")
            if made:
                middle = f"deelbo-{OWN}-submitting"
                cable = f"to{len(made)}"
                _ip("-n", middle, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("-n", middle, "link", "set", cable, "master", "br0", "up")
            else:
                _ip("-n", space, "link", "add", "br0", "type", "bridge")
            own = "eth0" if made else "br0"
            _ip("-n", space, "addr", "add", f"{ip}/24", "dev", own)
            _ip("-n", space, "link", "set", own, "up")
            made[name] = _started(space, name, ip, folder, shared)
            stack.callback(_end, made[name].process)
        for host in list(made.values())[1:]:
            host.listen()
        yield made


def _files(folder: Path, ip: str, made: Mapping[str, Host]) -> None:
    """The host's key, and who may come in: the key of the machine that submits, which is the first."""
    name = "host_key" if made else "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    known = Path("/etc/passwd").read_text()
    (folder / "passwd").write_text(f"{known}{USER}:x:{NUMBER}:{NUMBER}::/home/{USER}:/bin/bash\n")
    if made:
        (folder / "sshd").write_text(SSHD.format(ip=ip))
        shutil.copy(made["submitting"].folder / "id_ed25519.pub", folder / "authorized_keys")


def _started(space: str, name: str, ip: str, folder: Path, shared: Path) -> Host:
    installed = {one for one in sys.path if one.endswith("-packages")}
    kept = {str(ROOT), sys.prefix, os.path.realpath(sys.base_prefix)} | installed
    environment = os.environ | {
        "NAME": name,
        "KEPT": " ".join(sorted(kept)),  # outer folders first
        "FOLDER": str(folder),
        "SHARE": str(shared),
        "SHARED": SHARED,
        "USER": USER,
        "NUMBER": str(NUMBER),
        "PREFIX": sys.prefix,
    }
    apart = ["unshare", "-mpu", "--fork", "--kill-child", "--mount-proc"]
    line = ["ip", "netns", "exec", space, *apart, "bash", "-c", INIT]
    with (folder / "init.log").open("wb") as log:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/")
    host = Host(name, ip, folder, process)
    until = time.monotonic() + 20
    while True:
        with suppress(OSError, IndexError):
            if Path(f"/proc/{host.first}/root/run/ready").exists():
                return host
        if process.poll() is not None or time.monotonic() > until:
            _end(process)
            raise AssertionError(f"{name} did not start: {(folder / 'init.log').read_text()}")
        time.sleep(0.05)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)  # --kill-child: the first process dies with it, and with that all others
    process.wait()
    time.sleep(0.5)
