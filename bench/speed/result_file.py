"""The JSON file of a measurement: where it was taken, its name, and how it is written."""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from bench.execution.environment import hardware, versions

Result = dict[str, Any]


def environment(device: torch.device, threads: int) -> Result:
    facts = hardware(device) | {"threads": threads, "platform": platform.platform(), "versions": versions()}
    del facts["node"]  # results are published, names of machines are not
    if device.type == "cuda":
        facts["cudnn"], facts["cuda"] = torch.backends.cudnn.version(), torch.version.cuda
    return facts


def make_folder(out: Path) -> None:
    """Make the folder of a .json file, or the folder ``out``, where it is missing."""
    (out.parent if out.suffix == ".json" else out).mkdir(parents=True, exist_ok=True)


def write(result: Result, out: Path) -> Path:
    """Write the result as JSON to a .json file, or to a folder under a name of its own; return the file.

    A file that is there is replaced as a whole, so that it is never a part of a result.
    """
    make_folder(out)
    path = out if out.suffix == ".json" else out / f"{_name(result)}.json"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(to_json(result) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def to_json(result: Result) -> str:
    return json.dumps(result, indent=1)


def _name(result: Result) -> str:
    facts, setting = result["environment"], result["setting"]
    machine = re.sub(r"[^a-z0-9]+", "-", str(facts.get("gpu") or facts["cpu"]).lower()).strip("-")
    numerics = setting["numerics"]
    words = [machine, setting["backbone"], f"{setting['size']}px", f"batch{setting['batch']}", numerics["precision"]]
    words += [word for word in ("channels_last", "compile") if numerics[word]]
    return "_".join([*words, *(["peers"] if "over_sgd" in result else [])])
