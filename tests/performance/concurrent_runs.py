"""Start two `run`s together on S3 as moto plays it, many times: exactly one may run each time.

`python -m tests.performance.concurrent_runs [TIMES]`; the run that got the storage is stopped once it has said so.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.object_store import ObjectStore

CONFIG = """
name: together
dataset: mnist-digits
backbone: digits-resnet
priors: [l2-sp]
n: [100]
seeds: [1001]
methods: {de-elbo: {learning_rates: [0.1], kappa: D/N}}
training: {steps: 4, batch_size: 50}
resources: {slots: 1}
"""
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print one line for each time, and how often exactly one ran."""
    times = int((sys.argv[1:] or ["50"])[0])
    server = ObjectStore().listen()
    server.make()
    good = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(CONFIG)
        for time_ in range(times):
            codes = [_start(server, folder, time_, which) for which in "ab"]
            good += (outcomes := _outcomes(codes)) == ["ran", "refused"]
            print(time_ + 1, *outcomes, flush=True)
    server.hang_up()
    print(f"exactly one ran {good} of {times} times")
    sys.exit(good < times)


def _start(server: ObjectStore, folder: Path, time_: int, which: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-X", "faulthandler", "-m", "bench", "run", str(folder / "config.yaml")]
    command += ["--storage", f"s3://lab/time-{time_}", "--tracking-uri", "http://127.0.0.1:9"]
    where = folder / f"{time_}{which}"
    where.mkdir()
    env = os.environ | server.environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=where, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1
    )


def _outcomes(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Return "ran" or "refused" for each process, sorted, or its first line if it is neither."""
    outcomes = []
    for process in processes:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if line.startswith("together in s3://"):
            outcomes.append("ran")
        else:
            outcomes.append("refused" if "in use by another `run`" in line else line)
    time.sleep(0.2)
    for process in processes:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            print(process.communicate()[0])
    return sorted(outcomes)


if __name__ == "__main__":
    main()
