"""The makespan on G slots: by hand, by a clock that ticks, against the best schedule there is, and Graham's bound."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.results.frame import COLUMNS
from bench.results.makespan import Jobs, compute_makespan, compute_makespans

pytestmark = pytest.mark.filterwarnings("error")
SECONDS = st.integers(1, 9)
FIRST = st.lists(SECONDS, min_size=1, max_size=3).map(tuple)
CELLS = st.lists(st.builds(Jobs, FIRST, SECONDS | st.just(0)), min_size=1, max_size=3)
SMALL = CELLS.filter(lambda cells: sum(len(jobs.first) + bool(jobs.then) for jobs in cells) <= 6)


def ticking(cells: Sequence[Jobs], slots: int) -> int:
    """The same rule, played second by second; whole seconds of at least 1."""
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


def least(cells: Sequence[Jobs], slots: int) -> float:
    """The makespan of the best of all schedules: every order, each job as soon as a slot and its cell allow."""
    jobs = [(i, seconds, False) for i, cell in enumerate(cells) for seconds in cell.first]
    jobs += [(i, cell.then, True) for i, cell in enumerate(cells) if cell.then]
    best = float("inf")
    for order in permutations(jobs):
        free, ready, left = [0.0] * slots, [0.0] * len(cells), [len(cell.first) for cell in cells]
        for i, seconds, last in order:
            if last and left[i]:
                break
            slot = free.index(min(free))
            free[slot] = max(free[slot], ready[i] if last else 0) + seconds
            if not last:
                ready[i], left[i] = max(ready[i], free[slot]), left[i] - 1
        else:
            best = min(best, max(free))
    return best


def test_two_slots_by_hand() -> None:
    """3 and 2 start at once, 2 more at 2 ends at 4, and the retraining of 1 waits for it although a slot is free."""
    assert compute_makespan([Jobs((3, 2, 2), 1)], 2) == 5


def test_two_cells_by_hand() -> None:
    """While one cell's last run goes on, the other cell's retraining takes the free slot."""
    assert compute_makespan([Jobs((1,), 4), Jobs((5,), 2)], 2) == 7
    assert compute_makespan([Jobs((1,), 4), Jobs((5,), 2)], 1) == 12


def test_a_retraining_waits_for_its_whole_cell() -> None:
    """However many slots are free, it starts when the last of its cell's runs has ended."""
    assert compute_makespan([Jobs((1, 1, 8), 1)], 50) == 9


def test_a_cell_without_first_runs_still_has_its_last() -> None:
    """Nothing to wait for is no reason to leave it out."""
    assert compute_makespan([Jobs((), 5.0)], 1) == Jobs((), 5.0).seconds == 5


def test_runs_of_several_cells_share_one_queue() -> None:
    """Where the runs' order is given, it goes across cells; equal places go cell after cell."""
    assert compute_makespan([Jobs((1, 1), order=(1, 2)), Jobs((2,), order=(0,))], 2) == 2
    assert compute_makespan([Jobs((1, 1), order=(0, 0)), Jobs((2,), order=(0,))], 2) == 3


def test_nothing_takes_no_time() -> None:
    """No cells, no seconds."""
    assert compute_makespan([], 3) == 0


@pytest.mark.parametrize("slots", [0, -1])
def test_slots_are_at_least_one(slots: int) -> None:
    """Fewer than one slot is refused, and the number named."""
    with pytest.raises(ValueError, match=f"at least 1, got {slots}"):
        compute_makespan([Jobs((1.0,))], slots)


@given(CELLS)
def test_one_slot_takes_the_sum(cells: list[Jobs]) -> None:
    """One slot works through everything without a pause."""
    assert compute_makespan(cells, 1) == sum(sum(jobs.first) + jobs.then for jobs in cells)


@given(CELLS)
def test_many_slots_take_the_longest_chain(cells: list[Jobs]) -> None:
    """With a slot for every run, the cell with the longest run and retraining decides."""
    assert compute_makespan(cells, 20) == max(max(jobs.first) + jobs.then for jobs in cells)


@given(CELLS, st.integers(1, 4))
def test_it_is_what_a_clock_shows(cells: list[Jobs], slots: int) -> None:
    """The end is that of the same rule played second by second."""
    assert compute_makespan(cells, slots) == ticking(cells, slots)


@settings(max_examples=40, deadline=None)
@given(SMALL, st.integers(1, 3))
def test_it_keeps_grahams_bound(cells: list[Jobs], slots: int) -> None:
    """No better than the best schedule there is, and no worse than 2 - 1/slots of it."""
    found, best = compute_makespan(cells, slots), least(cells, slots)
    assert best <= found <= (2 - 1 / slots) * best + 1e-9
    assert found >= max(max(jobs.first) + jobs.then for jobs in cells)
    assert found >= sum(jobs.seconds for jobs in cells) / slots - 1e-9


ROW: dict[str, Any] = {"source": "", "dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100, "seed": 1}
ROW |= {"status": "completed", "test_acc": 0.5, "evaluate_seconds": 1.0}


def results(*rows: dict[str, Any]) -> pd.DataFrame:
    """Results in the schema of the records, from the few columns that matter; runs started in the order given."""
    filled = [dict.fromkeys(COLUMNS) | ROW | {"key": str(i), "started": float(i)} | row for i, row in enumerate(rows)]
    return pd.DataFrame(filled).astype({name: kind for name, kind in COLUMNS.items() if kind != "str"})


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
    """10 and 20 at once, then 30 until 40, then the best again: 65. With evaluation each takes one second more."""
    table = compute_makespans(results(*GRID), 2).query("dataset == 'd'").set_index("cost")
    assert table.loc["train", ["cells", "one_slot_seconds", "makespan_seconds", "slots"]].tolist() == [1, 85, 65, 2]
    assert table.loc["full", ["cells", "one_slot_seconds", "makespan_seconds", "slots"]].tolist() == [1, 89, 68, 2]
    assert (
        table[["prior", "method", "n", "split_seed", "backbone", "source"]].to_numpy().tolist()
        == [["l2-sp", "map-gs", 100, 1, "b", ""]] * 2
    )


def test_runs_start_as_they_were_started() -> None:
    """Not the best first: 1, 1, 2 takes 3 seconds on two slots, and 2, 1, 1 takes 2."""
    for runs, seconds in ((ENDS, [3, 3]), (ENDS[::-1], [2, 2])):
        frame = results(*(single(float(best), seconds) for best, seconds in runs))
        for one in (frame, frame.assign(started=np.nan)):  # where the start was not kept: as they stand
            assert compute_makespans(one, 2).query("cost == 'train'")["makespan_seconds"].tolist() == seconds
        assert (
            compute_makespans(frame[::-1], 2)["makespan_seconds"].tolist()
            == compute_makespans(frame, 2)["makespan_seconds"].tolist()
        )


def test_all_cells_share_the_slots() -> None:
    """The row "all" runs every cell of a method in one queue: less than one cell after the other."""
    frame = results(*GRID, *[row | {"n": 1000} for row in GRID], single(1.0, 7), single(2.0, 7, prior="ptyl"))
    table = compute_makespans(frame, 2).query("cost == 'train'")
    everything = table[table["dataset"] == "all"].set_index("method")
    assert everything.loc["map-gs", ["prior", "cells", "one_slot_seconds"]].tolist() == ["all", 2, 170]
    # 10, 20, 30 of one N until 40, of the other 10 from 20, 20 from 30, 30 from 40; 25 from 50, and 25 from 70
    assert everything.loc["map-gs", "makespan_seconds"] == 95
    assert everything.loc["de-elbo", ["cells", "one_slot_seconds", "makespan_seconds"]].tolist() == [2, 14, 7]
    assert everything[["n", "split_seed"]].isna().all(axis=None)


def test_all_cells_start_as_they_were_started() -> None:
    """In the row "all" too: a long run of a later cell that was started first starts first."""
    frame = results(single(1.0, 2, n=1000), single(1.0, 1), single(2.0, 1))
    (row,) = compute_makespans(frame, 2).query("dataset == 'all' and cost == 'train'").to_dict("records")
    assert row["makespan_seconds"] == 2


def test_sources_do_not_share_slots() -> None:
    """Each source has rows of its own, and names the backbones of its own."""
    frame = results(single(1.0, 4, source="a"), single(1.0, 5, source="b", backbone="c"))
    table = compute_makespans(frame, 2).query("dataset == 'all' and cost == 'train'")
    assert table[["source", "backbone", "cells", "makespan_seconds"]].to_numpy().tolist() == [
        ["a", "b", 1, 4],
        ["b", "c", 1, 5],
    ]


def test_a_cell_whose_best_was_not_trained_again_is_left_out() -> None:
    """Its time is not known; the other cells of the method still count, a retrained loser does not help."""
    frame = results(*GRID, *[row | {"seed": 2} for row in GRID if row != GRID[3]])
    table = compute_makespans(frame, 2)
    assert set(table["split_seed"].dropna()) == {1}
    assert set(table.loc[table["dataset"] == "all", "cells"]) == {1}
    assert compute_makespans(results(*GRID[:3]), 2).empty


def test_published_runs_have_no_start() -> None:
    """Without the times at which runs were started they start in some order; without other phases there is no full."""
    nothing = {"started": np.nan, "evaluate_seconds": np.nan, "select_seconds": np.nan}
    table = compute_makespans(results(*[row | nothing for row in GRID]), 3)
    assert table["cost"].tolist() == ["train", "train"]
    assert table["makespan_seconds"].tolist() == [55, 55]


def test_what_if_refuses_no_slots() -> None:
    """As the makespan does."""
    with pytest.raises(ValueError, match="at least 1"):
        compute_makespans(results(*GRID), 0)


def test_no_results_have_no_makespan() -> None:
    """An empty table, with its columns."""
    table = compute_makespans(results(*GRID).iloc[:0], 2)
    assert table.empty
    assert {"makespan_seconds", "cells", "slots"} <= set(table.columns)
