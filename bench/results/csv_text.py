"""Read CSV files of others as text, and find the lines that an interrupted copy has cut."""

import csv
import io
from collections.abc import Collection
from pathlib import Path

import pandas as pd

MAX_FILE_BYTES = 50_000_000
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
MISSING = ["", "nan", "NaN"]


def read_csv_text(path: Path, needed: Collection[str]) -> pd.DataFrame:
    """Read a table as text, missing where a field is empty, with a column ``fault`` (empty: none).

    A line that ends too early has a fault, and its last field is missing, as it may be a part: each of ``needed`` must
    be before that.

    Raises:
        ValueError, csv.Error, OSError: the file cannot be read as a table.
    """
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ValueError(f"it has {size} bytes, at most {MAX_FILE_BYTES} are read")
    text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("it has zero bytes: it is not in UTF-8, or was copied in part")
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    while header and not header[-1]:  # commas at its end
        del header[-1]
    separator = next((name for sign, name in SEPARATORS.items() if sign in "".join(header)), None)
    if len(header) == 1 and separator is not None:
        raise ValueError(f"its columns are separated by {separator}: save it with commas, and points in numbers")
    if len(set(header)) < max(len(header), 1):
        raise ValueError("it is empty, or has two columns of one name")
    lines = [(reader.line_num, fields) for fields in reader if fields]
    rows, faults = [], []
    for number, fields in lines:
        row, fault = dict(zip(header, fields, strict=False)), ""
        if any(fields[len(header) :]):
            raise ValueError(f"line {number} has {len(fields)} fields, the first line {len(header)}")
        if len(fields) < len(header) or (number == lines[-1][0] and not text.endswith(("\n", "\r"))):
            row = dict(zip(header, fields[:-1], strict=False))  # the last one may be a part
            if any(name in header and name not in row for name in needed):
                raise ValueError(f"line {number} is cut")
            fault = (
                f"no end or too few fields in line {number}, which may be cut, and others may be missing: copy it again"
            )
        rows.append(row)
        faults.append(fault)
    table = pd.DataFrame(rows, columns=header, dtype=object)
    return table.mask(table.isin(MISSING)).assign(fault=faults).drop_duplicates(ignore_index=True)
