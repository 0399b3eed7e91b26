"""The step times that `speed` measures; what they must be is not for a unit test to say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.speed import measure

PRIORS = ["l2-zero", "l2-sp", "ptyl"]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measure("digits-resnet", 4, 16, 1, rounds=1, steps=1, device=torch.device("cpu"), threads=1)


def test_every_method_and_prior_is_timed(measured: dict[str, Any]) -> None:
    """MAP and DE ELBo are timed with each prior, and compared with each."""
    names = {f"{method} {prior}" for method in ("map", "de-elbo") for prior in PRIORS}
    assert set(measured["milliseconds_a_step"]) == set(measured["images_a_second"]) == names
    assert list(measured["de_elbo_over_map"]) == PRIORS


def test_a_ratio_is_that_of_one_round(measured: dict[str, Any]) -> None:
    """With one round, a ratio is DE ELBo's time over MAP's, and all its statistics are the same."""
    times = measured["milliseconds_a_step"]
    for prior in PRIORS:
        ratio = times[f"de-elbo {prior}"]["median"] / times[f"map {prior}"]["median"]
        spread = measured["de_elbo_over_map"][prior]
        assert spread["median"] == spread["min"] == spread["max"] == pytest.approx(ratio)
        assert ratio > 0
        assert measured["images_a_second"][f"map {prior}"] == pytest.approx(4000 / times[f"map {prior}"]["median"])


def test_a_measurement_says_where_it_was_taken(measured: dict[str, Any]) -> None:
    """Beside the times stand the hardware, the versions, and what was timed."""
    environment = measured["environment"]
    assert (environment["device"], environment["threads"]) == ("cpu", 1)
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (measured["backbone"], measured["batch"], measured["image"]) == ("digits-resnet", 4, [1, 16, 16])
    assert (measured["rounds"], measured["steps_a_round"]) == (1, 1)
    assert measured["weights"] > 10_000


def test_the_number_of_threads_is_put_back() -> None:
    """Measuring with one thread leaves the process with as many as it had, even where it fails."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="no-such-network"):
            measure("no-such-network", 4, 16, 1, 1, 1, torch.device("cpu"), threads=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
