"""One storage through every fault in turn; and, where DEELBO_FAULTS is set, each fault alone, so many times.

`make faults` tries them as often as is promised.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from deelbo.pretrained import embedded as pretraining
from tests.faults.chain import hit_by_all
from tests.faults.place import Place
from tests.faults.rows import Scenario, try_out
from tests.faults.scenarios import SCENARIOS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TIMES = int(os.environ.get("DEELBO_FAULTS", "0"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose cache holds a network that was pretrained briefly; it is the cache of all processes here."""
    folder = tmp_path_factory.mktemp("faults")
    quick = partial(pretraining.pretrain, pretraining.Recipe(epochs=1, swag_epochs=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEELBO_CACHE", str(folder / "cache"))
        patch.setattr(pretraining, "pretrain", lambda _: quick())
        pretraining.load_pretrained()
    return folder


@pytest.fixture
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That cache; and one thread, as a trial under Ray has."""
    monkeypatch.setenv("DEELBO_CACHE", str(place / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.long
@pytest.mark.usefixtures("cache")
def test_one_storage_through_all_of_them(place: Path) -> None:
    """After every fault in turn a storage has the undisturbed records, and MLflow has each of them once."""
    here = Place(place / "chain", few=1, many=1)
    here.folder.mkdir()
    here.run_here()
    row = try_out(Scenario("all", "", hit_by_all, 1), 1, here, seed=0)
    assert row.held, row.problem


@pytest.mark.skipif(TIMES == 0, reason="DEELBO_FAULTS is not set: `make faults` tries each fault alone")
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_fault(scenario: Scenario, place: Path) -> None:
    """The promise for each fault holds every time it is tried."""
    shared = Place(place, few=1, many=4)
    row = try_out(scenario, 500 if scenario.name == "hostile" else TIMES, shared, seed=0)
    assert row.held is not False, row.problem
