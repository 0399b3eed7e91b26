"""Simulated hosts with SSH: Linux namespaces with their own network, mounts, processes, host name, sshd and user.

They share the installed code and the folder /mnt/deelbo. Their network is in the namespace of the submitting host,
so it is invisible outside.
"""

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

RUN_ID = str(os.getpid())
"""Part of the names of networks, as two test runs may work at once."""
ROOT = Path(__file__).resolve().parents[2]
USER, USER_ID = "deelbo", 4242
SHARED = "/mnt/deelbo"
SUBMITTING = "192.168.0.1"

# Mounts an empty /tmp, /home, /root and /run, keeping some folders in them, which are held below /mnt meanwhile.
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
chown -hR $USER_ID:$USER_ID /home/$USER
touch /run/ready
while true; do sleep 3600 & wait; done
"""
"""Ends in a loop of bash, as orphaned processes need a parent."""

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
    """A simulated host.

    Attributes:
        name: host name.
        ip: address on the network of the hosts.
        folder: on this machine, for keys and logs.
        process: `unshare`; all processes of the host end with it.
    """

    name: str
    ip: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def first(self) -> int:
        """Number of the host's first process on this machine."""
        numbers = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(numbers[0])

    def line(self, command: Sequence[str], root: bool = False, variables: Mapping[str, str] | None = None) -> list[str]:
        """Return a command line that runs a command on the host as its user, or as root."""
        user = [] if root else ["--setuid", str(USER_ID), "--setgid", str(USER_ID)]
        into = ["nsenter", "--target", str(self.first), "--mount", "--pid", "--net", "--uts", *user]
        home = "/root" if root else f"/home/{USER}"
        path = f"{home}/deelbo-venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        environment = {"HOME": home, "USER": "root" if root else USER, "PATH": path, "LANG": "C.UTF-8"} | dict(
            variables or {}
        )
        return [*into, "env", "-i", "-C", home, *(f"{name}={value}" for name, value in environment.items()), *command]

    def run(
        self, *command: str, seconds: float = 240, variables: Mapping[str, str] | None = None, root: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host; its stderr goes to stdout."""
        return subprocess.run(
            self.line(command, root, variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start_sshd(self) -> None:
        """Start the sshd and wait until it answers."""
        with (self.folder / "sshd.log").open("ab") as log:
            server = self.line([_find_program("sshd") or "sshd", "-f", "/run/host/sshd", "-D", "-e"], root=True)
            subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while self.run("bash", "-c", f"exec 3<> /dev/tcp/{self.ip}/22").returncode:
            assert time.monotonic() < deadline, (self.folder / "sshd.log").read_text()
            time.sleep(0.1)

    def stop_sshd(self) -> None:
        """Stop the sshd."""
        assert self.run("bash", "-c", "kill $(cat /run/sshd.pid)", root=True).returncode == 0


def missing() -> str:
    """Describe what this machine lacks to simulate hosts; empty if nothing."""
    if os.geteuid():
        return "needs root to create namespaces"
    programs = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "curl": "curl"}
    packages = [package for name, package in programs.items() if _find_program(name) is None]
    if packages:
        return f"needs `apt-get install {' '.join(packages)}`; no service has to run"
    script = "ip link add br0 type bridge && mount -t tmpfs none /mnt"
    done = subprocess.run(["unshare", "-mpun", "--fork", "sh", "-c", script], check=False, capture_output=True)
    return "needs the right to create namespaces" if done.returncode else ""


def _find_program(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def hosts(work: Path, addresses: Mapping[str, str]) -> Iterator[dict[str, Host]]:
    """Yield running hosts by name: one for each of ``addresses``, with an sshd, and the host "submitting".

    ``work``/shared is /mnt/deelbo on all of them.
    """
    shared = work / "shared"
    shared.mkdir()
    os.chown(shared, USER_ID, USER_ID)
    made: dict[str, Host] = {}
    with ExitStack() as stack:
        for name, ip in ({"submitting": SUBMITTING} | dict(addresses)).items():
            folder = work / name
            folder.mkdir()
            _write_files(folder, ip, made)
            space = f"deelbo-{RUN_ID}-{name}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space)
            _ip("-n", space, "link", "set", "lo", "up")
            if made:
                middle = f"deelbo-{RUN_ID}-submitting"
                cable = f"to{len(made)}"
                _ip("-n", middle, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("-n", middle, "link", "set", cable, "master", "br0", "up")
            else:
                _ip("-n", space, "link", "add", "br0", "type", "bridge")
            own = "eth0" if made else "br0"
            _ip("-n", space, "addr", "add", f"{ip}/24", "dev", own)
            _ip("-n", space, "link", "set", own, "up")
            made[name] = _start(space, name, ip, folder, shared)
            stack.callback(_end, made[name].process)
        for host in list(made.values())[1:]:
            host.start_sshd()
        yield made


def _write_files(folder: Path, ip: str, made: Mapping[str, Host]) -> None:
    """Create the keys of a host; all admit the key of the submitting host, which is the first."""
    name = "host_key" if made else "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    users = Path("/etc/passwd").read_text()
    (folder / "passwd").write_text(f"{users}{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/bash\n")
    if made:
        (folder / "sshd").write_text(SSHD.format(ip=ip))
        shutil.copy(made["submitting"].folder / "id_ed25519.pub", folder / "authorized_keys")


def _start(space: str, name: str, ip: str, folder: Path, shared: Path) -> Host:
    installed = {path for path in sys.path if path.endswith("-packages")}
    kept = {str(ROOT), sys.prefix, os.path.realpath(sys.base_prefix)} | installed
    environment = os.environ | {
        "NAME": name,
        "KEPT": " ".join(sorted(kept)),  # outer folders first
        "FOLDER": str(folder),
        "SHARE": str(shared),
        "SHARED": SHARED,
        "USER": USER,
        "USER_ID": str(USER_ID),
        "PREFIX": sys.prefix,
    }
    apart = ["unshare", "-mpu", "--fork", "--kill-child", "--mount-proc"]
    line = ["ip", "netns", "exec", space, *apart, "bash", "-c", INIT]
    with (folder / "init.log").open("wb") as log:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/")
    host = Host(name, ip, folder, process)
    deadline = time.monotonic() + 20
    while True:
        with suppress(OSError, IndexError):
            if Path(f"/proc/{host.first}/root/run/ready").exists():
                return host
        if process.poll() is not None or time.monotonic() > deadline:
            _end(process)
            raise AssertionError(f"{name} did not start: {(folder / 'init.log').read_text()}")
        time.sleep(0.05)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)  # --kill-child: the first process dies with it, and then all others
    process.wait()
    time.sleep(0.5)
