"""The driver is killed by SIGKILL at a random moment, and `run` goes on."""

import time

from tests.faults.place import A_SEED, Place
from tests.faults.processes import Run, alive, until
from tests.faults.proof import attempts, contents, in_mlflow, same_results, unchanged

CHAIN = 5
"""Kills of the same benchmark, one after the other."""
IDLE_GONE_SECONDS = 120.0


def kill_drivers(times: int, place: Place) -> str:
    """Chains of killed runs, each in a storage of its own; every chain ends with one that is left alone."""
    gone, lost, again, kept = [0.0], 0.0, 0, 0
    phases = dict.fromkeys(("start-up", "trials", "end"), 0)
    idle: dict[int, str] = {}
    for first in range(0, times, CHAIN):
        storage = place.folder / f"storage{first // CHAIN}"
        config = place.config()
        before: dict[str, bytes] = {}
        for kill, phase in enumerate(_phases(min(CHAIN, times - first), place)):
            with Run(config, storage, str(kill)) as run:
                phases[_wait(run, phase, place)] += 1
                gone.append(run.kill())
                idle |= run.idle
            if storage.exists():
                kept += unchanged(before, storage)
                before = contents(storage)
        with Run(config, storage, "last") as run:
            run.ends_well()
        kept += unchanged(before, storage)
        same_results(storage, place.reference, place.few)
        in_mlflow(storage / "mlflow.db", storage)
        assert not list(storage.rglob("*.part")), "files that were half written stay"
        trials, _, seconds = attempts(storage)
        again, lost = again + trials, lost + seconds
    until(lambda: not alive(idle), "Ray's idle processes are gone", IDLE_GONE_SECONDS)
    where = ", ".join(f"{count} in {phase}" for phase, count in phases.items())
    return (
        f"killed {where}; {kept} looks at files of finished trials, none changed; {again} trials ran again, "
        f"{lost:.1f} s booked as lost; processes of trials gone after {max(gone):.1f} s, {len(idle)} idle processes of "
        "Ray's at the end"
    )


def _phases(count: int, place: Place) -> list[str]:
    """When to kill: most often among trials. After the last trial there is only one more kill in a storage."""
    phases = ["trials", "start-up", "trials", "start-up" if place.random.random() < 0.5 else "trials", "end"][-count:]
    if count == 1:
        return ["trials"]
    middle = phases[:-1]
    place.random.shuffle(middle)
    return [*middle, phases[-1]]


def _wait(run: Run, phase: str, place: Place) -> str:
    """Waits for a random moment of that phase; the phase it was."""
    if phase == "start-up":
        time.sleep(place.random.uniform(0.2, place.account["start_up_seconds"]))
    elif phase == "trials":
        run.until_training()
        time.sleep(place.random.uniform(0, 5 * place.account["trial"]))
    else:
        run.until_recorded(place.few * A_SEED)
        time.sleep(place.random.uniform(0, 4))
    return phase
