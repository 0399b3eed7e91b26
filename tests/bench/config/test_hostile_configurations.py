"""Malicious or damaged configurations give a plan or one line of error at once, and execute nothing."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from bench.cli.main import main
from bench.config.benchmark import MAX_TRIALS, Benchmark, make_methods
from bench.config.loading import load_benchmark, preset_names
from bench.config.sections import Training

Plan = Callable[..., int]
SHORT_KEYS = ("datasets", "backbones", "dataset", "n", "backbone", "head")
KEYS = (*SHORT_KEYS, "untied", "retrain", "kappa", "ptyl", "weights", "<<")


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Call `plan` with a file of those bytes: 0, or 2 with one short line on stderr."""
    path = tmp_path / "a.yaml"

    def call(text: bytes, *arguments: str) -> int:
        path.write_bytes(text)
        code = main(["plan", str(path), *arguments])
        out, error = capsys.readouterr()
        if code == 0:
            assert error == ""
            assert "trials" in out
        else:
            assert code == 2
            assert error.startswith("deelbo-bench: ")
            assert error.endswith("\n")
            assert error[:-1].isprintable()
            assert len(error) < 600
        return code

    return call


@pytest.fixture
def full(content: dict[str, Any]) -> dict[str, Any]:
    """A benchmark in which every key is given."""
    del content["dataset"], content["n"], content["backbone"]
    content |= {"datasets": {"mnist-digits": [100, 200]}, "backbones": {"digits-resnet": {"head": "head"}}}
    content["backbones"]["digits-resnet"] = {"weights": None, "ptyl": None, "head": None}
    content["methods"]["map-gs"] |= {"untied": ["l2-sp"], "ptyl_lambdas": [1, 10], "retrain": {"l2-sp": "all"}}
    content["training"] = Training().model_dump() | content["training"]
    content |= {"order_seed": 0, "max_failures": 2, "data": "/data", "verify_data": True}
    return content


def dumped(content: Any) -> bytes:
    return yaml.safe_dump(content, sort_keys=False).encode()


def test_changed_values(full: dict[str, Any], fuzz: Any, mutated: Any, plan: Plan) -> None:
    """Any value at any key gives a plan or one line."""
    assert plan(dumped(full)) == 0
    both = st.sampled_from([full, copy.deepcopy(full)]).flatmap(
        lambda one: mutated(one, keys=(*KEYS, *Benchmark.model_fields))
    )
    codes = set()
    fuzz(140, both, lambda changed: codes.add(plan(dumped(changed))))
    assert codes == {0, 2}


def tags(tripwire: Path) -> list[str]:
    """Return YAML that runs a command in an unsafe loader."""
    command = f"touch {tripwire}"
    return [
        f"!!python/object/apply:os.system ['{command}']",
        f"!!python/object/apply:subprocess.check_output [['touch', '{tripwire}']]",
        f"!!python/object/new:os.system ['{command}']",
        f"!!python/object/apply:builtins.exec ['import os; os.system(\"{command}\")']",
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{tripwire}']]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
    ]


def test_a_tag_that_names_code(tripwire: Path, content: dict[str, Any], plan: Plan) -> None:
    """A YAML tag that would call a function is refused, in a file and in --set, and nothing is called."""
    for i, tag in enumerate(tags(tripwire)):
        if i < 2:
            yaml.load(tag, Loader=yaml.UnsafeLoader)  # noqa: S506  the payload works
            tripwire.unlink(missing_ok=True)
        assert plan(dumped(content) + f"data: {tag}\n".encode()) == 2
        assert plan(dumped(content), f"--set=data={tag}") == 2


SNIPPETS = (
    *(b"&a ", b"*a", b"<<: *a\n", b"!!int ", b"!!float ", b"!!bool ", b"!!timestamp ", b"!!set ", b"!!omap ", b"!x "),
    *(b"\t", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"1e400", b"9" * 5000, b"0x" + b"f" * 5000, b"? ", b"- "),
    *(b"---\n", b"%YAML 9.9\n", b"[" * 3000, b"{a: " * 500, b"'", b'"', b'"\\e[31m\\x00\\ud800"', b"| \n"),
    *(b"1:" * 300 + b"0.0", b"2024-01-01", b"~"),
)


def test_garbled_text(full: dict[str, Any], fuzz: Any, garbled: Any, plan: Plan, tripwire: Path) -> None:
    """Any bytes in a file give a plan or one line, and nothing is executed."""
    snippets = (*SNIPPETS, *(tag.encode() for tag in tags(tripwire)))
    fuzz(90, garbled(dumped(full), snippets), plan)


def test_changes_on_the_command_line(
    content: dict[str, Any], fuzz: Any, garbled: Any, plan: Plan, tripwire: Path
) -> None:
    """Any text in --set gives a plan or one line, and nothing is executed."""
    snippets = (*SNIPPETS, *(tag.encode() for tag in tags(tripwire)), b"..", b"=", b"methods.map-gs.")
    start = st.sampled_from([b"training.steps=100", b"datasets={mnist-digits: [100]}", b"methods.map-gs.retrain=all"])
    changes = start.flatmap(lambda text: garbled(text, snippets)).map(lambda text: text.decode(errors="replace"))
    fuzz(40, changes, lambda text: plan(dumped(content), f"--set={text}"))


def bomb(levels: int, merge: bool) -> str:
    """Return aliases of aliases, ten per level, that stand for ten to the power of ``levels`` values."""
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [x]"]
    for i in range(levels):
        several = ", ".join([f"*a{i}"] * 10)
        lines.append(f"a{i + 1}: &a{i + 1} {{<<: [{several}]}}" if merge else f"a{i + 1}: &a{i + 1} [{several}]")
    return "\n".join([*lines, f"name: *a{levels}", ""])


LARGE = {
    "aliases": bomb(30, merge=False),
    "merged aliases": bomb(30, merge=True),
    "many merged": "a: &a {" + ", ".join(f"k{i}: 1" for i in range(2000)) + "}\n" + "<<: *a\n" * 2000,
    "nested lists": "n: " + "[" * 10_000,
    "nested lists that end": "n: " + "[" * 10_000 + "]" * 10_000,
    "nested mappings": "n: " + "{a: " * 10_000,
    "nested blocks": "".join(" " * i + f"k{i}:\n" for i in range(300)),
    "a key of many characters": f"{'k' * 40_000}: 1\n",
    "many keys": "\n".join(f"k{i}: 1" for i in range(5000)),
    "an integer of many digits": f"order_seed: {'9' * 10_000}\n",
    "the same in hexadecimal": f"order_seed: 0x{'f' * 10_000}\n",
    "a size in hexadecimal": f"n: [0x{'f' * 10_000}]\n",
    "steps in hexadecimal": f"training: {{steps: 0x{'f' * 200}}}\n",
    "a number in sixties": f"order_seed: {'1:' * 400}0.0\n",
    "a number too large": "training: {sigma: 1e400}\n",
    "an empty integer": "order_seed: !!int ''\n",
    "a wrong bool": "verify_data: !!bool x\n",
    "a wrong date": "data: !!timestamp x\n",
    "a list in itself": "n: &n [*n]\n",
    "a mapping in itself": "methods: &m {map-gs: *m}\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a tag of many characters": f"data: !{'t' * 40_000} x\n",
    "a megabyte": "# " + "x" * 1_000_000,
    "a name of many characters": f"dataset: {'d' * 40_000}\n",
    "weights of many characters": "backbone: null\nbackbones: {digits-resnet: {weights: IMAGENET"
    + "x" * 40_000
    + "}}\n",
    "control characters": 'dataset: "\\e[2J\\e[31m\\a\\x00\\ud800\\u202e"\n',
    "a control character in a key": '"\\e[2J": 1\n',
    "huge images": "training: {image_size: 1000000000000000000}\n",
    "huge batches": "training: {batch_size: 1000000000000000000000000}\n",
}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_what_is_too_large(text: str, content: dict[str, Any], plan: Plan, fuzz: Any) -> None:
    """A configuration that is, or expands to something, too large or too deep is refused in one short line."""
    keys = {line.partition(":")[0] for line in text.splitlines()}
    rest = {key: value for key, value in content.items() if key not in keys}
    text = text.removeprefix("backbone: ~\n")
    codes = []
    fuzz(1, st.just(text.encode() + b"\n" + dumped(rest)), lambda text: codes.append(plan(text)))
    assert set(codes) == {2}


def test_a_grid_that_is_too_large(content: dict[str, Any], fuzz: Any, plan: Plan) -> None:
    """An astronomical number of trials is refused before any trial is made."""
    several = [1e-9 * (i + 1) for i in range(300)]
    grids = {"learning_rates": several, "weight_decays": several, "untied": ["l2-sp"], "retrain": "all"}
    content |= {"seeds": list(range(2000)), "methods": {"map-gs": grids}}
    fuzz(1, st.just(dumped(content)), lambda text: plan(text) == 2 or pytest.fail("planned"))


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("retrain", ["best", "all", "{l2-sp: all}"])
def test_trials_are_counted_as_they_are_made(name: str, retrain: str) -> None:
    """The limited number of trials is the number that would be made."""
    change = [f"methods.map-gs.retrain={retrain}", "methods.map-gs.untied=[l2-zero]", "seeds=[1]"]
    benchmark = load_benchmark(name, change)
    for prior in benchmark.priors:
        cells = [method for method in make_methods(benchmark) if method.cell.prior == prior]
        counted = sum(method.count() for method in cells)
        wanted = [entry.max_trials(prior) for entry in benchmark.methods.values() if entry.runs_on(prior)]
        assert counted == sum(wanted) * len({method.cell for method in cells})


def test_as_many_trials_as_are_allowed(content: dict[str, Any], plan: Plan) -> None:
    """Exactly the largest number of trials is accepted, and one seed more is refused."""
    content |= {"methods": {"elbo": {"learning_rates": [0.1 / (i + 1) for i in range(250)]}}}
    assert plan(dumped(content | {"seeds": list(range(MAX_TRIALS // 250))})) == 0
    assert plan(dumped(content | {"seeds": list(range(MAX_TRIALS // 250 + 1))})) == 2
