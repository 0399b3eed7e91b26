"""Machines of one's own on this one: each a name space of network, mounts, processes and host name.

They share the installed code and one folder; /tmp is a machine's own, with all that Ray, a job or a driver puts there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

OWN = str(os.getpid())
"""In all names, as two test runs may be at it at once; names of networks have 15 characters at most."""
BRIDGE = f"dlb{OWN}"
NET = f"10.{200 + os.getpid() // 200 % 50}.{os.getpid() % 200}"
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Machine:
    """One of them.

    Attributes:
        name: its host name.
        ip: its address, which others reach.
        process: the first in it; with it all others end.
    """

    name: str
    ip: str
    process: subprocess.Popen[bytes]


def possible() -> bool:
    """Whether this process may make them; tried with a name space that ends with the trial."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    script = f"ip link add {BRIDGE} type bridge && mount -t tmpfs none /mnt"
    done = subprocess.run(["unshare", "-mpun", "--fork", "sh", "-c", script], check=False, capture_output=True)
    return not done.returncode


@contextmanager
def machines(shared: Path, logs: Path) -> Iterator[Callable[[str, Sequence[str]], Machine]]:
    """Starts machines one after the other, by a name and a command; ``shared`` is there on each, by the same path."""
    with ExitStack() as stack:
        _ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "del", BRIDGE)
        _ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        count = 0

        def start(name: str, command: Sequence[str]) -> Machine:
            nonlocal count
            count += 1
            space, ip = f"deelbo-{OWN}-{name}", f"{NET}.{1 + count}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space)
            _ip("link", "add", f"dl{OWN}.{count}", "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", f"dl{OWN}.{count}", "master", BRIDGE, "up")
            for words in (("addr", "add", f"{ip}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                _ip("-n", space, *words)
            _ip("-n", space, "link", "set", "lo", "up")
            # the shared folder is under /tmp itself: held elsewhere while an empty /tmp is put over the old one
            script = (
                f'hostname {name}; mount --bind "$0" /mnt && mount -t tmpfs -o size=4g tmpfs /tmp && mkdir -p "$0" && '
                'mount --move /mnt "$0" && cd /tmp && exec "$@"'
            )
            inside = ["unshare", "-mpu", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
            line = ["ip", "netns", "exec", space, *inside, str(shared), *(word.format(ip=ip) for word in command)]
            environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
            log = stack.enter_context((logs / f"{name}.txt").open("wb"))
            process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd="/")
            stack.callback(_end, process)
            return Machine(name, ip, process)

        yield start


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # --kill-child: the first process of the name space dies with it, and with that all others
    process.wait()
    time.sleep(0.5)


def head() -> list[str]:
    """The command of a machine that is a cluster's head, without slots of its own."""
    ports = ["--port", "6379", "--dashboard-host", "{ip}", "--dashboard-port", "8265"]
    return [str(RAY), "start", "--head", "--block", "--num-cpus", "0", "--node-ip-address", "{ip}", *ports]


def worker(head: Machine, cpus: int = 1) -> list[str]:
    """The command of one that joins."""
    where = ["--address", f"{head.ip}:6379", "--node-ip-address", "{ip}"]
    return [str(RAY), "start", "--block", "--num-cpus", str(cpus), *where]


def wait_for(url: str, seconds: float = 90) -> None:
    """Until something answers there."""
    until = time.monotonic() + seconds
    while True:
        with suppress(OSError), urlopen(url, timeout=5):  # noqa: S310 - our own
            return
        if time.monotonic() > until:
            raise AssertionError(f"nothing answers at {url}")
        time.sleep(0.3)
