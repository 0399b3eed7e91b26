"""Tests of random numbers: long vectors are drawn by several threads, and are the same for any number of them."""

import pytest
import torch

from deelbo._random import MAX_STREAMS, MIN_STREAM_SIZE, fill_normal_

LONG = 3 * MIN_STREAM_SIZE + 5


def drawn(size: int, threads: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.set_num_threads(threads)
    vector = torch.empty(size, dtype=dtype)
    fill_normal_(vector, torch.tensor(0.5), torch.Generator().manual_seed(3))
    return vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [LONG, (MAX_STREAMS + 2) * MIN_STREAM_SIZE])
def test_numbers_do_not_depend_on_threads(size: int, dtype: torch.dtype) -> None:
    """One, two and five threads draw the same numbers, and every element is drawn."""
    first = drawn(size, 1, dtype)
    assert all(torch.equal(first, drawn(size, threads, dtype)) for threads in (2, 5))
    assert float((first == 0).double().mean()) < 1e-4
    assert len(first.unique()) > 0.9 * min(size, 2**22)


def test_short_vectors_come_from_the_generator_itself() -> None:
    """Vectors below two streams are torch's own."""
    size = 2 * MIN_STREAM_SIZE - 1
    assert torch.equal(drawn(size, 2), 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("size", [10, LONG])
def test_the_draws_of_a_run_that_diverges_are_nan(size: int) -> None:
    """A sigma that is NaN gives NaN at any length, so that a run ends as diverged, not by an error."""
    vector = torch.zeros(size)
    fill_normal_(vector, torch.tensor(float("nan")), None)
    assert bool(vector.isnan().all())


def test_long_vectors_are_standard_normal_and_independent() -> None:
    """Moments, tails and correlations of a long draw, within its streams, between them, and with the next draw."""
    generator, draws = torch.Generator().manual_seed(5), []
    for _ in range(2):
        vector = torch.empty(4 * MIN_STREAM_SIZE)
        fill_normal_(vector, torch.tensor(0.1), generator)
        draws.append(vector.double() / 0.1)
    n = len(draws[0])
    for x in draws:
        assert abs(float(x.mean())) < 5 / n**0.5
        assert float(x.square().mean()) == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
        assert float(x.pow(4).mean()) == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
        assert float((x.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=5 * (0.05 / n) ** 0.5)
        streams = x.view(4, -1)
        correlations = (streams @ streams.T / streams.shape[1]).fill_diagonal_(0)
        assert float(correlations.abs().max()) < 5 / streams.shape[1] ** 0.5
        assert abs(float((x[1:] * x[:-1]).mean())) < 5 / n**0.5
    assert abs(float((draws[0] * draws[1]).mean())) < 5 / n**0.5


def test_the_global_generator_is_used() -> None:
    """Without a generator, torch.manual_seed decides, and each draw is another one."""
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        vectors = torch.empty(2, LONG)
        for vector in vectors:
            fill_normal_(vector, torch.ones(()), None)
        found.append(vectors)
    assert torch.equal(*found)
    assert not torch.equal(*found[0])
