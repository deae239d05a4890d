"""Which classes a data set has, when nobody has said so yet."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedsplit.data.records import Record, records
from fedsplit.data.rows import LABELS
from fedsplit.errors import DataError

_LIMIT = 1000
"""More different values than this are no classes; ids lie below it."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?|[+-]?\.\d+", re.ASCII)


def infer_labels(files: Iterable[str | Path], column: str = "") -> tuple[str, ...]:
    """The class names over all files, in the order of their ids.

    Names are sorted; ids take their names from a column ``label_name`` beside them, or are named by themselves.

    :raises DataError: without such a column; for names and ids mixed, ids that are negative, fractional or above what
        a classification has, or too many values.
    """
    names: set[str] = set()
    by_id: dict[int, str] = {}
    for file in files:
        for record in records(file):
            found = column or next((one for one in LABELS if one in record.fields), "")
            if found not in record.fields:
                columns = ", ".join(record.fields) or "none"
                expected = f'"{column}"' if column else f"one of {', '.join(LABELS)}"
                raise DataError(f"found the columns {columns}; expected {expected}", record.file, record.line)
            value = str(record.fields[found]).strip()
            number = _number(value)
            if number is None:
                names.add(value)
            else:
                one = _id(number, value, record)
                by_id.setdefault(one, str(record.fields.get("label_name", one)))
            if len(names) + len(by_id) > _LIMIT:
                fix = f'column "{found}" holds no classes; name another with --label'
                raise DataError(f"found more than {_LIMIT} different labels; {fix}", record.file, record.line)
    if names and by_id:
        raise DataError(f"found both names ({sorted(names)[0]}) and ids ({min(by_id)}) as labels; expected one kind")
    if not names and not by_id:
        raise DataError("found no rows; expected at least one label")
    if names:
        return tuple(sorted(names))
    if len(set(by_id.values())) < len(by_id):
        by_id = {one: str(one) for one in by_id}
    return tuple(by_id.get(i, str(i)) for i in range(max(by_id) + 1))


def _number(value: str) -> float | None:
    """What is written as a number; None for a name ("²" and "1e3" are names)."""
    return float(value) if _NUMBER.fullmatch(value) else None


def _id(number: float, value: str, record: Record) -> int:
    if not 0 <= number < _LIMIT or number != int(number):
        expected = f"an id from 0 to {_LIMIT - 1}, or a name"
        fix = "number the classes from 0, name another column with --label, or take the task regression"
        raise DataError(f"found the label {value}; expected {expected}; {fix}", record.file, record.line)
    return int(number)
