"""The result of `speed`: its parts, its file, and its command."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cli.main import main
from bench.speed.baseline import BaselineRun
from bench.speed.measure import measure
from bench.speed.result_file import write
from bench.speed.workloads import Setting
from deelbo.training.numerics import Numerics

CPU = torch.device("cpu")
PRIORS = ["l2-zero", "l2-sp", "ptyl"]
SMALL = Setting(batch=4, rounds=1, steps=1)
NAIVE = Setting(batch=4, rounds=1, steps=1, priors=("l2-sp",), naive_steps=1, numerics=Numerics("bf16", True))


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measure(SMALL, CPU)


@pytest.fixture(scope="module")
def beside_naive() -> dict[str, Any]:
    return measure(NAIVE, CPU)


def test_every_method_and_prior_is_timed(measured: dict[str, Any]) -> None:
    """MAP and DE ELBo are timed and compared with each prior; baseline and profile only on request."""
    names = {f"{method} {prior}" for method in ("map", "de-elbo") for prior in PRIORS}
    assert set(measured["milliseconds_a_step"]) == set(measured["images_a_second"]) == names
    assert list(measured["de_elbo_over_map"]) == PRIORS
    assert "naive" not in measured
    assert "profile" not in measured


def test_a_ratio_is_that_of_one_round(measured: dict[str, Any]) -> None:
    """With one round a ratio is the DE ELBo's time over MAP's, and all its statistics are equal."""
    times = measured["milliseconds_a_step"]
    for prior in PRIORS:
        ratio = times[f"de-elbo {prior}"]["median"] / times[f"map {prior}"]["median"]
        spread = measured["de_elbo_over_map"][prior]
        assert spread["median"] == spread["min"] == spread["max"] == pytest.approx(ratio)
        assert ratio > 0
        assert measured["images_a_second"][f"map {prior}"] == pytest.approx(4000 / times[f"map {prior}"]["median"])


def test_the_baseline_is_timed_beside(beside_naive: dict[str, Any]) -> None:
    """The result has the baseline's times, and their ratio to the fast path for each method."""
    naive = beside_naive["naive"]
    assert set(naive["milliseconds_a_step"]) == set(naive["images_a_second"]) == {"map", "de-elbo"}
    for method, spread in naive["milliseconds_a_step"].items():
        assert naive["images_a_second"][method] == pytest.approx(4000 / spread["median"])
        assert 0 < naive["over_fast"][method]["min"] <= naive["over_fast"][method]["max"]
    assert not any("naive" in name for name in beside_naive["images_a_second"])


def test_a_failing_baseline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the baseline fails, the result has its error and all other times."""

    def die(_: BaselineRun) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error")

    monkeypatch.setattr(BaselineRun, "step", die)
    result = measure(NAIVE, CPU)
    assert "Bus error" in result["naive"]["error"]
    assert result["images_a_second"]["map l2-sp"] > 0


def test_times_are_written_before_what_may_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped in the baseline or the profiler has written its times, and then each part that ended."""
    file = tmp_path / "speed.json"
    options = "--batch 4 --rounds 1 --steps 1 --priors l2-sp --naive-steps 1 --profile"
    command = ["speed", *options.split(), "--out", str(file)]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BaselineRun, "step", stop)
        assert main(command) == 130
    result = json.loads(file.read_text())
    assert result["images_a_second"]["map l2-sp"] > 0
    assert not {"naive", "profile"} & set(result)
    monkeypatch.setattr(torch.profiler, "profile", stop)
    assert main(command) == 130
    result = json.loads(file.read_text())
    assert result["naive"]["images_a_second"]["map"] > 0
    assert "profile" not in result
    assert list(tmp_path.iterdir()) == [file]


def test_without_its_prior_the_baseline_has_no_ratio() -> None:
    """Without L2-SP, the prior of the baseline, there is no ratio to it."""
    result = measure(Setting(batch=4, rounds=1, steps=1, priors=("l2-zero",), naive_steps=1), CPU)
    assert result["naive"]["over_fast"] == {}
    assert result["naive"]["images_a_second"]["map"] > 0


def test_a_measurement_says_where_it_was_taken(measured: dict[str, Any]) -> None:
    """The result has the hardware, versions, settings and deviation, but not the machine's name."""
    environment = measured["environment"]
    assert (environment["device"], environment["threads"]) == ("cpu", 1)
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "node" not in environment
    assert platform.node() not in environment.values()
    assert measured["backbone"] == "digits-resnet"
    assert measured["setting"] == asdict(SMALL)
    assert measured["weights"] == 18_626
    assert set(measured["deviation_from_plain"]) == {"loss", "gradient", "rho"}


def test_photographs_are_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images stored at another size are resized to 8/7 of the input in every step; others are not."""
    brought: list[tuple[int, ...]] = []
    resize = F.interpolate

    def spy(pixels: Tensor, size: tuple[int, int], **how: Any) -> Tensor:
        brought.append((*pixels.shape[2:], *size))
        return resize(pixels, size, **how)

    monkeypatch.setattr(F, "interpolate", spy)
    measure(Setting(batch=4, rounds=1, steps=1, priors=("l2-sp",)), CPU)
    assert brought == []
    measure(Setting(batch=4, stored=10, rounds=1, steps=2, priors=("l2-sp",)), CPU)
    guard, rounds = 1, 2  # the first round is not counted
    assert brought == [(10, 10, 18, 18)] * (guard + rounds * 2 * 2)


def test_a_profile_says_where_time_goes() -> None:
    """With --profile each method and prior has its operations, the slowest first, and no block of several."""
    result = measure(Setting(batch=4, rounds=1, steps=1, priors=("l2-sp",), profile=True), CPU)
    assert set(result["profile"]) == {"map l2-sp", "de-elbo l2-sp"}
    for rows in result["profile"].values():
        times = [row["milliseconds"] for row in rows]
        assert times == sorted(times, reverse=True)
        assert any("conv" in row["operation"] for row in rows)
        assert not any(row["operation"].startswith("Optimizer.") for row in rows)  # annotations repeat their operations
        assert min(times) > 0


def test_the_number_of_threads_is_put_back() -> None:
    """Measuring restores the number of threads, even if it fails."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="no-such-network"):
            measure(Setting("no-such-network", rounds=1, steps=1), CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_result_is_written_whole(measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result is written to its file, whose folder is made; one that cannot be written leaves the earlier one."""
    file = tmp_path / "new" / "speed.json"
    assert write(measured, file) == file
    assert json.loads(file.read_text()) == json.loads(json.dumps(measured))
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write(measured, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "digits-resnet_16px_batch4_float32.json"),
        ({"precision": "bf16", "channels_last": True}, "digits-resnet_16px_batch4_bf16_channels_last.json"),
        ({"compile": True}, "digits-resnet_16px_batch4_float32_compile.json"),
    ],
)
def test_a_folder_takes_several_results(
    change: dict[str, Any], name: str, measured: dict[str, Any], tmp_path: Path
) -> None:
    """In a folder a result gets a name with the hardware, the settings and the numerics."""
    numerics = measured["setting"]["numerics"] | change
    environment = measured["environment"] | {"gpu": "ACME H9 (80 GB)"}
    result = measured | {"environment": environment, "setting": measured["setting"] | {"numerics": numerics}}
    file = tmp_path / f"acme-h9-80-gb_{name}"
    assert write(result, tmp_path) == file
    assert list(tmp_path.iterdir()) == [file]
    assert json.loads(file.read_text())["setting"]["numerics"] == numerics


def test_the_command_prints_what_it_does_not_write(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --out the whole result is printed, once."""
    options = "--batch 4 --rounds 1 --steps 1 --priors l2-sp --profile"
    assert main(["speed", *options.split()]) == 0
    assert set(json.loads(capsys.readouterr().out)["profile"]) == {"map l2-sp", "de-elbo l2-sp"}


def test_the_command_measures_as_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`speed --out` prints only the path of its file, which has the settings of the command."""
    file = tmp_path / "speed.json"
    options = "--batch 4 --rounds 1 --steps 1 --priors l2-sp --precision bf16 --channels-last --naive-steps 1"
    assert main(["speed", *options.split(), "--out", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    result = json.loads(file.read_text())
    assert result["setting"] == json.loads(json.dumps(asdict(NAIVE)))
    assert result["naive"]["over_fast"]["map"]["median"] > 0
