"""A trial's process is killed by SIGKILL."""

import os
import signal
import time

from tests.faults.place import Place
from tests.faults.processes import Run, in_training
from tests.faults.proof import attempts, in_mlflow, same_results


def kill_workers(times: int, place: Place) -> str:
    """Random ones of the processes that are inside a trial die; the run goes on to its end."""
    seeds = min(place.many, place.few + times // 10)
    storage = place.folder / "storage"
    killed = 0
    with Run(place.config(seeds=seeds), storage, "run", "--tracking-uri", place.database("mlflow")) as run:
        while killed < times:
            run.until_training()
            time.sleep(place.random.uniform(0, 1.5 * place.account["trial"]))
            if found := in_training(run.pid):
                os.kill(place.random.choice(found), signal.SIGKILL)
                killed += 1
                time.sleep(0.1)  # so that the dead is not found again
        run.ends_well()
        said = run.said
    count = same_results(storage, place.reference, seeds)
    points = in_mlflow(place.folder / "mlflow.db", storage)
    again, vain, lost = attempts(storage)
    told = said.count("lost, tried again")
    assert told == vain, f"{told} lines on lost trials, {vain} attempts in vain"
    # one that died after its record was written, and before it was read, lost nothing
    assert 0.5 * killed <= vain <= killed, f"{killed} processes killed, {vain} attempts in vain"
    assert lost > 0, "no second was booked as lost"
    return (
        f"exit code 0; {vain} attempts in vain at {again} trials, {lost:.1f} s booked as lost; {count - again} others "
        f"at attempt 1; {points} points in MLflow, each once"
    )
