"""Files are cut short; and trials whose records are gone run again with the same seed."""

from collections.abc import Mapping
from pathlib import Path
from random import Random

from tests.faults.place import Place
from tests.faults.processes import Run
from tests.faults.proof import contents, in_mlflow, same_results, unchanged

ROUND = 10
"""Files that are cut at once: a start of `run` takes longer than their trials."""


def truncate(times: int, place: Place) -> str:
    """Records and series are cut at random bytes; `run` names them, sets them aside, and runs their trials again."""
    storage, database = place.finished("storage"), place.database("mlflow")
    cut = runs = 0
    while cut < times:
        short = cut_files(storage, min(ROUND, times - cut), place.random)
        keys = {name.partition("/")[2] for name in short}
        others = {name: content for name, content in contents(storage).items() if name.partition("/")[2] not in keys}
        with Run(place.config(), storage, str(cut), "--tracking-uri", database) as run:
            run.ends_well()
            said = run.said
        named(short, storage, said)
        unchanged(others, storage)
        same_results(storage, place.reference, place.few)
        in_mlflow(place.folder / "mlflow.db", storage)
        cut, runs = cut + len(short), runs + len(keys)
    return f"all {cut} named and kept in damaged/; {runs} trials ran again, the same bits; the others not touched"


def cut_files(storage: Path, count: int, random: Random) -> dict[str, bytes]:
    """Cuts so many records and series; what is left of each, by its name."""
    short = {}
    for name in random.sample(sorted(contents(storage)), count):
        file = storage / name
        short[name] = file.read_bytes()[: random.randrange(file.stat().st_size)]
        file.write_bytes(short[name])
    return short


def named(short: Mapping[str, bytes], storage: Path, said: str) -> None:
    """`run` named each on the terminal, or the record it goes with, and kept what was left of it in ``damaged``."""
    for name, content in short.items():
        key = name.partition("/")[2]
        files = {f"{storage / name} is damaged", f"{storage / 'records' / key} is damaged"}
        lines = [line for line in said.splitlines() if any(line.startswith(file) for file in files)]
        assert any("moved to damaged/" in line for line in lines), f"{name} is not named:\n{said}"
        aside = [file.read_bytes() for file in (storage / "damaged").glob(f"*-{name.replace('/', '-')}")]
        assert content in aside, f"{name}, cut to {len(content)} bytes, is not in damaged/"


def repeat(times: int, place: Place) -> str:
    """Trials whose records are taken away run again, and give the same to the last bit."""
    storage = place.finished("storage")
    keys = place.random.sample(sorted(file.name for file in (storage / "records").iterdir()), times)
    for key in keys:
        for folder in ("records", "series"):
            (storage / folder / key).unlink()
    left = contents(storage)
    with Run(place.config(), storage, "run", "--tracking-uri", place.database("mlflow")) as run:
        run.ends_well()
    unchanged(left, storage)
    same_results(storage, place.reference, place.few)
    return f"{times} trials in other processes: metrics, learned state and series equal bit for bit"
