"""Simulated machines: Linux namespaces with their own network, mounts, processes, host name and /tmp.

They share the installed code and one folder.
"""

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

RUN_ID = str(os.getpid())
"""Part of all names, as two test runs may work at once; names of networks have 15 characters at most."""
BRIDGE = f"dlb{RUN_ID}"
NET = f"10.{200 + os.getpid() // 200 % 50}.{os.getpid() % 200}"
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Machine:
    """A simulated machine.

    Attributes:
        name: host name.
        ip: address on the network of the machines.
        process: the first process; all others end with it.
    """

    name: str
    ip: str
    process: subprocess.Popen[bytes]


def possible() -> bool:
    """Return whether this process may create namespaces, by creating one."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    script = f"ip link add {BRIDGE} type bridge && mount -t tmpfs none /mnt"
    done = subprocess.run(["unshare", "-mpun", "--fork", "sh", "-c", script], check=False, capture_output=True)
    return not done.returncode


@contextmanager
def machines(shared: Path, logs: Path) -> Iterator[Callable[[str, Sequence[str]], Machine]]:
    """Yield a function that starts a machine by its name and command; all have ``shared`` at the same path."""
    with ExitStack() as stack:
        _ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "del", BRIDGE)
        _ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        count = 0

        def start(name: str, command: Sequence[str]) -> Machine:
            nonlocal count
            count += 1
            space, ip = f"deelbo-{RUN_ID}-{name}", f"{NET}.{1 + count}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space)
            _ip("link", "add", f"dl{RUN_ID}.{count}", "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", f"dl{RUN_ID}.{count}", "master", BRIDGE, "up")
            for words in (("addr", "add", f"{ip}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                _ip("-n", space, *words)
            _ip("-n", space, "link", "set", "lo", "up")
            # the shared folder lies in /tmp: it is kept on /mnt while an empty /tmp is mounted
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
    process.kill()  # --kill-child: the first process of the namespace dies with it, and then all others
    process.wait()
    time.sleep(0.5)


def head() -> list[str]:
    """Return the command of a Ray head without CPUs."""
    ports = ["--port", "6379", "--dashboard-host", "{ip}", "--dashboard-port", "8265"]
    return [str(RAY), "start", "--head", "--block", "--num-cpus", "0", "--node-ip-address", "{ip}", *ports]


def worker(head: Machine, cpus: int = 1) -> list[str]:
    """Return the command of a Ray worker."""
    address = ["--address", f"{head.ip}:6379", "--node-ip-address", "{ip}"]
    return [str(RAY), "start", "--block", "--num-cpus", str(cpus), *address]


def wait_for(url: str, seconds: float = 90) -> None:
    """Wait until a URL answers."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError), urlopen(url, timeout=5):  # noqa: S310 - a simulated machine
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing answers at {url}")
        time.sleep(0.3)
