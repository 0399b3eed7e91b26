"""The README's code runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(not BLOCKS, reason="README.md has no python block")
@pytest.mark.parametrize("code", BLOCKS, ids=[f"block-{i}" for i in range(len(BLOCKS))])
def test_code_in_the_readme_runs(code: str) -> None:
    """Every python block of the README runs as it stands, in a namespace of its own."""
    exec(compile(code, str(README), "exec"), {"__name__": "__readme__"})  # noqa: S102
