"""Ctrl-C, which a terminal sends to all of a process group, and SIGTERM, which the driver alone gets."""

import os
import signal
import time

from tests.faults.place import A_SEED, Place
from tests.faults.processes import GONE, Run, alive, descendants, until
from tests.faults.proof import contents, in_mlflow, mlflow_runs, same_results, unchanged

BACK = 10.0
"""Seconds in which the terminal must be back, where the machine has nothing else to do."""


def interrupt(times: int, place: Place) -> str:
    """Runs are stopped, by turns by either, mostly among trials, and continued; the last one is left alone."""
    storage, config, more = place.folder / "storage", place.config(), ("--tracking-uri", place.database("mlflow"))
    before: dict[str, bytes] = {}
    took: list[float] = []
    for stop in range(times):
        with Run(config, storage, str(stop), *more) as run:
            last = stop > 0 and stop == times - 1
            if last:  # once when nothing is left but the report
                run.until_recorded(place.few * A_SEED)
                time.sleep(place.random.uniform(0, 4))
            else:
                run.until_training()
                time.sleep(place.random.uniform(0, 4 * place.account["trial"]))
            started = descendants(run.pid)
            since = time.monotonic()
            if stop % 2:
                os.kill(run.pid, signal.SIGTERM)
            else:
                os.killpg(run.pid, signal.SIGINT)
            took.append(back_after(run, since))
            assert sum("the same command continues" in line for line in run.said.splitlines()) == 1, run.said
            assert not list(run.lines()), run.complained
        until(lambda: not alive(started), "all processes of Ray are gone", GONE)  # noqa: B023
        unchanged(before, storage)
        before = contents(storage)
        _closed(place, storage)
    with Run(config, storage, "last", *more) as run:
        run.ends_well()
    unchanged(before, storage)
    same_results(storage, place.reference, place.few)
    in_mlflow(place.folder / "mlflow.db", storage)
    return (
        f"exit code 130, back after {min(took):.1f} to {max(took):.1f} s; MLflow's runs closed as KILLED; continued to "
        "the same records"
    )


def back_after(run: Run, since: float) -> float:
    """Seconds until it ended with code 130. On a machine that is crowded it may take longer in proportion."""
    run.stops(130)
    took = time.monotonic() - since
    crowd = max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
    assert took <= BACK * crowd, f"back after {took:.1f} s, with {crowd:.1f} processes a core"
    return took


def _closed(place: Place, storage: object) -> None:
    """In MLflow the benchmark's run is KILLED, and so is every trial's that has no record."""
    records = {file.stem for file in (place.folder / "storage" / "records").glob("*.json")}
    for _, status, key in mlflow_runs(place.folder / "mlflow.db", place.folder / "storage"):
        right = {"FINISHED", "KILLED"} if key in records else {"KILLED"}
        assert status in right, f"{'a trial' if key else 'the benchmark'} is {status} in MLflow after the stop"
