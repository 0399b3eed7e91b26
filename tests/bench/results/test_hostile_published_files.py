"""Damaged result files of the authors: a table, or one line per problem, and no traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from bench.cli.main import main
from bench.results.published import read_published

Publish = Callable[..., tuple[Path, Path]]
SNIPPETS = (
    *(b",", b"\n", b"\r", b'"', b'""', b"\x00", b"\xff", b"nan", b"inf", b"1e400", b"-1", b"9" * 5000, b"\x1b[31m"),
    *(b"_tau=", b"_lr_0=1e999", b"_n=9e9", b"_random_state=1.5", b"l2-zero", b"ptyl", b"=cmd|' /C calc'!A0", b"True"),
    *(b'"a\nb"', b"x" * 20_000, b",,,,,,,,", "\u0663".encode(), b"0x10", b"1_000", b"runtime", b"criterion"),
)


@pytest.fixture
def pair(publish: Publish) -> tuple[Path, Path]:
    """Two cells of four configurations."""
    return publish(cells=[(100, 1001), (100, 2001)])


@pytest.fixture
def changed(pair: tuple[Path, Path], garbled: Any) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Both files, one of them or both changed."""
    tuned, retrained = (path.read_bytes() for path in pair)
    both = garbled(tuned, SNIPPETS), garbled(retrained, SNIPPETS)
    return st.tuples(st.just(tuned) | both[0], both[1]) | st.tuples(both[0], st.just(retrained))


def test_damaged_files_give_a_table_or_an_error(
    pair: tuple[Path, Path], changed: st.SearchStrategy[Any], fuzz: Any
) -> None:
    """Any content gives a table of whole cells or a ValueError, and each problem is one short line."""
    problems_found = set()

    def read(contents: tuple[bytes, bytes]) -> None:
        for path, content in zip(pair, contents, strict=True):
            path.write_bytes(content)
        try:
            frame, lines, _ = read_published(*pair)
            assert frame["n"].between(0, 2**31).all()
            assert set(frame["prior"]) <= {"l2-zero", "l2-sp", "ptyl"}
            assert (frame["train_seconds"] > 0).all()
        except ValueError as error:
            lines = [str(error)]
        problems_found.add(bool(lines))
        assert all(line.isprintable() and len(line) < 1000 for line in lines)

    read((pair[0].read_bytes(), pair[1].read_bytes()))
    fuzz(60, changed, read)
    assert problems_found == {True, False}


def test_a_damaged_file_of_searches_gives_a_table_or_an_error(tmp_path: Path, garbled: Any, fuzz: Any) -> None:
    """So does a file of searches."""
    content = (Path(__file__).parent / "published" / "CIFAR-10_ConvNeXt-Tiny_BO.csv").read_bytes()
    path = tmp_path / "CIFAR-10_BO.csv"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            frame, lines, _ = read_published(path)
            assert (frame["train_seconds"] > 0).all()
        except ValueError as error:
            lines = [str(error)]
        assert all(line.isprintable() and len(line) < 1000 for line in lines)

    fuzz(60, garbled(content, SNIPPETS), read)


@pytest.mark.usefixtures("sketch")
def test_report_of_damaged_files_returns_an_exit_code(
    pair: tuple[Path, Path],
    changed: st.SearchStrategy[Any],
    fuzz: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For any content `report` returns 0, 1 or 2, with a short line for each problem."""

    def shown(contents: tuple[bytes, bytes]) -> None:
        for path, content in zip(pair, contents, strict=True):
            path.write_bytes(content)
        code = main(["report", "--published", *map(str, pair), "--out", str(tmp_path / "pages")])
        lines = capsys.readouterr().err.splitlines()
        assert code in (0, 1, 2)
        assert bool(lines) is bool(code)
        assert code != 2 or len(lines) == 1
        assert all(line.isprintable() and len(line) < 700 for line in lines)

    fuzz(10, changed, shown)
