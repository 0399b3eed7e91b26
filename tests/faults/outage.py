"""The MLflow server is killed, for half a minute or for good."""

import itertools
import json
import math
import sqlite3
import time
from pathlib import Path

from tests.faults.place import A_SEED, Place
from tests.faults.processes import Process, Run, until
from tests.faults.proof import in_mlflow, same_results
from tests.faults.servers import Server

PAUSE = 30.0
"""Seconds that a server is away; it takes a few more until it answers."""
RESTART = 20.0
"""Seconds that it may take to answer."""
HEARD = 120.0
"""Seconds in which who follows the benchmark must find out that the server is back: it asks every ten, and the first
answers of a server that just started may take as long."""
SLOTS = 1
MOST = 1.0
"""Seconds that an outage may add to the longest wait between two trials."""


def pause_server(times: int, place: Place, pause: float = PAUSE) -> str:
    """The server dies and comes back, again and again, under a run that is long enough for it."""
    storage, more = place.folder / "storage", {"resources": {"slots": SLOTS}}
    outages: list[tuple[float, float]] = []
    seeds = 0
    with Server(place.folder / "server.db", place.reference / "mlflow.db") as server:
        while len(outages) < times:  # the second time only where the machine became faster than it was
            left = (times - len(outages)) * (pause + RESTART)
            seeds += max(1, math.ceil(left * SLOTS / (A_SEED * place.account["trial"])))
            with Run(place.config("long", seeds, **more), storage, f"{seeds}", "--tracking-uri", server.uri) as run:
                run.until_training()
                while len(outages) < times and _seconds_left(run, seeds * A_SEED, place) > pause + RESTART:
                    known = _runs_in(server.database)
                    run.until(lambda known=known: _runs_in(server.database) > known, "another trial is in MLflow")
                    time.sleep(place.random.uniform(0, 3))
                    known, since = _runs_in(server.database), time.time()
                    server.kill()
                    time.sleep(pause)
                    server.start()
                    outages.append((since, time.time()))
                    until(lambda known=known: _runs_in(server.database) > known, "MLflow hears of it again", HEARD)
                run.ends_well()
                assert "MLflow did not take everything" not in run.said, run.said
        points = in_mlflow(server.database, storage)
    inside, outside = _waits(storage, outages)
    assert inside, "no trial started in an outage"
    longest, rest = max(inside), max(outside, default=0.0)
    assert longest <= rest + MOST, f"a slot waited {longest:.2f} s in an outage, {rest:.2f} s at most else"
    return (
        f"longest wait from a trial's end to the next start: {1000 * longest:.0f} ms in the outages ({len(inside)} "
        f"starts), {1000 * rest:.0f} ms else ({len(outside)}); {points} points in MLflow, each once"
    )


def _seconds_left(run: Run, trials: int, place: Place) -> float:
    """Estimate how long a run of so many trials will still take."""
    left = trials - len(run.records()) if run.runs() else 0
    return left * place.account["trial"] / SLOTS


def _runs_in(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute("select count(*) from runs").fetchone()[0])


def _waits(storage: Path, outages: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the seconds between trials of one call: those that touch an outage, and the others."""
    records = [json.loads(file.read_text()) for file in (storage / "records").glob("*.json")]
    calls = sorted(float(file.stat().st_mtime) for file in (storage / "runs").iterdir())
    moments = sorted((record["started"], record["finished"]) for record in records)
    inside: list[float] = []
    outside: list[float] = []
    for (_, end), (start, _) in itertools.pairwise(moments):
        if any(end <= call <= start for call in calls):
            continue
        (inside if any(end < up and start > down for down, up in outages) else outside).append(start - end)
    return inside, outside


def lose_server(times: int, place: Place) -> str:
    """Lose the server for good, again and again; `sync` sends all to a new one, or to the old database, by turns."""
    database = place.folder / "server.db"
    waiting: list[tuple[Run, Server]] = []
    points: list[int] = []
    fresh = Server(place.folder / "new.db")
    fresh.start(wait=False)
    try:
        for number in range(times):
            server = Server(database, None if number else place.reference / "mlflow.db")
            server.start()
            _rescue(waiting, server, fresh, place, points)
            run = Run(place.config(), place.folder / f"storage{number}", "run", "--tracking-uri", server.uri)
            waiting.append((run, server))
            run.until_training()
            time.sleep(place.random.uniform(0, place.few * A_SEED * place.account["trial"] / 2))
            server.kill()
            run.until_recorded(place.few * A_SEED)
        with Server(database) as again:
            _rescue(waiting, again, fresh, place, points)
    finally:
        fresh.kill()
        for run, server in waiting:
            server.kill()
            run.kill()
    return (
        f"exit code 0, and told to `sync`; after it {sum(points)} points of {times} storages in MLflow, each once; "
        f"{(times + 1) // 2} times on a new server, {times // 2} on the old database"
    )


def _rescue(waiting: list[tuple[Run, Server]], again: Server, fresh: Server, place: Place, points: list[int]) -> None:
    """Waits for the run that lost its server, and brings its records to MLflow by `sync`."""
    for run, _ in waiting:
        run.ends_well()
        assert "MLflow did not take everything" in run.said, run.said
        assert f"sync {run.storage}" in run.said.replace("sync storage", f"sync {place.folder}/storage"), run.said
        same_results(run.storage, place.reference, place.few)
        server = again if len(points) % 2 else fresh
        server.wait()
        command = ["bench", "sync", str(run.storage), "--tracking-uri", server.uri]
        with Process(command, place.folder, f"{run.storage.name}-sync") as sync:
            assert sync.end() == 0, sync.tail()
        points.append(in_mlflow(server.database, run.storage))
    waiting.clear()
