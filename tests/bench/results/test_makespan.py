"""The makespan on G slots: by hand, and against a simulation second by second."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.results.makespan import Jobs, compute_makespan, compute_makespans
from tests.helpers.result_frames import make_frame

pytestmark = pytest.mark.filterwarnings("error")
SECONDS = st.integers(1, 9)
FIRST = st.lists(SECONDS, min_size=1, max_size=3).map(tuple)
CELLS = st.lists(st.builds(Jobs, FIRST, SECONDS | st.just(0)), min_size=1, max_size=3)


def simulate_seconds(cells: Sequence[Jobs], slots: int) -> int:
    """Simulate the same rule second by second; whole seconds of at least 1."""
    queue = [[seconds, i] for i, jobs in enumerate(cells) for seconds in jobs.first]
    left = [len(jobs.first) for jobs in cells]
    running: list[list[int]] = []
    now = 0
    while queue or running:
        while queue and len(running) < slots:
            running.append(queue.pop(0))
        now += 1
        for job in running:
            job[0] -= 1
        for _, i in sorted(job for job in running if job[0] == 0):
            left[i] -= 1
            if left[i] == 0 and cells[i].then:
                queue.append([int(cells[i].then), i])
        running = [job for job in running if job[0]]
    return now


@pytest.mark.parametrize(
    ("cells", "slots", "seconds"),
    [
        ([Jobs((3, 2, 2), 1)], 2, 5),
        ([Jobs((1,), 4), Jobs((5,), 2)], 2, 7),
        ([Jobs((1,), 4), Jobs((5,), 2)], 1, 12),
        ([Jobs((1, 1, 8), 1)], 50, 9),
        ([Jobs((), 5.0)], 1, 5),
        ([Jobs((1, 1), order=(1, 2)), Jobs((2,), order=(0,))], 2, 2),
        ([Jobs((1, 1), order=(0, 0)), Jobs((2,), order=(0,))], 2, 3),
        ([], 3, 0),
    ],
)
def test_makespan_by_hand(cells: list[Jobs], slots: int, seconds: float) -> None:
    """Retraining waits for all runs of its cell, others may take the free slot, an order goes across cells."""
    assert compute_makespan(cells, slots) == seconds


@pytest.mark.parametrize("slots", [0, -1])
def test_slots_are_at_least_one(slots: int) -> None:
    """Fewer than one slot is refused, and the number named."""
    with pytest.raises(ValueError, match=f"at least 1, got {slots}"):
        compute_makespan([Jobs((1.0,))], slots)


@given(CELLS, st.sampled_from([1, 2, 3, 4, 20]))
def test_makespan_agrees_with_a_simulation(cells: list[Jobs], slots: int) -> None:
    """The end is that of the same rule simulated second by second."""
    assert compute_makespan(cells, slots) == simulate_seconds(cells, slots)


def results(*rows: dict[str, Any]) -> pd.DataFrame:
    """Make a table of trials that started in the given order."""
    runs = [{"started": float(i)} | row for i, row in enumerate(rows)]
    return make_frame(*runs, test_acc=0.5, evaluate_seconds=1.0)


def tune(rate: float, nll: float, seconds: float, **more: Any) -> dict[str, Any]:
    judged = {"method": "map-gs", "stage": "tune", "learning_rate": rate, "val_nll": nll}
    return judged | {"train_seconds": seconds, **more}


def retrain(rate: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {"method": "map-gs", "stage": "retrain", "learning_rate": rate, "train_seconds": seconds, **more}


def single(objective: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {"method": "de-elbo", "stage": "run", "objective": objective, "train_seconds": seconds, **more}


GRID = [tune(0.1, 2.0, 10), tune(0.2, 1.0, 20), tune(0.3, 3.0, 30), retrain(0.2, 25), retrain(0.1, 90)]


ENDS = [(3, 1), (2, 1), (1, 2)]  # objective and seconds


def test_rows_of_a_cell_by_hand() -> None:
    """10 and 20 at once, then 30 until 40, then the best again: 65; evaluation adds a second to each."""
    table = compute_makespans(results(*GRID), 2).query("dataset == 'd'").set_index("cost")
    assert table.loc["train", ["cells", "one_slot_seconds", "makespan_seconds", "slots"]].tolist() == [1, 85, 65, 2]
    assert table.loc["full", ["cells", "one_slot_seconds", "makespan_seconds", "slots"]].tolist() == [1, 89, 68, 2]
    assert (
        table[["prior", "method", "n", "split_seed", "backbone", "source"]].to_numpy().tolist()
        == [["l2-sp", "map-gs", 100, 1, "b", ""]] * 2
    )


def test_runs_queue_in_the_order_of_their_start() -> None:
    """1, 1, 2 takes 3 seconds on two slots, and 2, 1, 1 takes 2; without starts the order of rows counts."""
    for runs, seconds in ((ENDS, [3, 3]), (ENDS[::-1], [2, 2])):
        frame = results(*(single(float(best), seconds) for best, seconds in runs))
        for one in (frame, frame.assign(started=np.nan)):  # where the start was not kept: as they stand
            assert compute_makespans(one, 2).query("cost == 'train'")["makespan_seconds"].tolist() == seconds
        assert (
            compute_makespans(frame[::-1], 2)["makespan_seconds"].tolist()
            == compute_makespans(frame, 2)["makespan_seconds"].tolist()
        )


def test_all_cells_share_the_slots() -> None:
    """The row "all" runs every cell of a method in one queue."""
    frame = results(*GRID, *[row | {"n": 1000} for row in GRID], single(1.0, 7), single(2.0, 7, prior="ptyl"))
    table = compute_makespans(frame, 2).query("cost == 'train'")
    everything = table[table["dataset"] == "all"].set_index("method")
    assert everything.loc["map-gs", ["prior", "cells", "one_slot_seconds"]].tolist() == ["all", 2, 170]
    # 10, 20, 30 of one N until 40, of the other 10 from 20, 20 from 30, 30 from 40; 25 from 50, and 25 from 70
    assert everything.loc["map-gs", "makespan_seconds"] == 95
    assert everything.loc["de-elbo", ["cells", "one_slot_seconds", "makespan_seconds"]].tolist() == [2, 14, 7]
    assert everything[["n", "split_seed"]].isna().all(axis=None)


def test_all_cells_queue_in_the_order_of_their_start() -> None:
    """In the row "all" a long run of a later cell that started first starts first."""
    frame = results(single(1.0, 2, n=1000), single(1.0, 1), single(2.0, 1))
    (row,) = compute_makespans(frame, 2).query("dataset == 'all' and cost == 'train'").to_dict("records")
    assert row["makespan_seconds"] == 2


def test_sources_do_not_share_slots() -> None:
    """Each source has its own rows, with its own backbones."""
    frame = results(single(1.0, 4, source="a"), single(1.0, 5, source="b", backbone="c"))
    table = compute_makespans(frame, 2).query("dataset == 'all' and cost == 'train'")
    assert table[["source", "backbone", "cells", "makespan_seconds"]].to_numpy().tolist() == [
        ["a", "b", 1, 4],
        ["b", "c", 1, 5],
    ]


def test_cells_without_retraining_are_left_out() -> None:
    """Their time is unknown; other cells of the method count, and a retrained loser does not help."""
    frame = results(*GRID, *[row | {"seed": 2} for row in GRID if row != GRID[3]])
    table = compute_makespans(frame, 2)
    assert set(table["split_seed"].dropna()) == {1}
    assert set(table.loc[table["dataset"] == "all", "cells"]) == {1}
    assert compute_makespans(results(*GRID[:3]), 2).empty


def test_published_runs_have_no_start() -> None:
    """Without starts and other phases there are rows of the training cost only."""
    nothing = {"started": np.nan, "evaluate_seconds": np.nan, "select_seconds": np.nan}
    table = compute_makespans(results(*[row | nothing for row in GRID]), 3)
    assert table["cost"].tolist() == ["train", "train"]
    assert table["makespan_seconds"].tolist() == [55, 55]


def test_no_results_have_no_makespan() -> None:
    """The table is empty, with its columns."""
    table = compute_makespans(results(*GRID).iloc[:0], 2)
    assert table.empty
    assert {"makespan_seconds", "cells", "slots"} <= set(table.columns)
