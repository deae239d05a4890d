"""From records to rows: what a task reads of a file, with the columns of this file.

The columns come from the run file's ``[data]`` section, or are found by their usual names; a missing one is an error
that lists the columns there are. Labels may be ids or names and always leave here as ids.
"""

from __future__ import annotations

import difflib
import math
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsplit.config.run import DataSection, Task
from fedsplit.data.records import Record, records
from fedsplit.errors import DataError

TEXTS = ("text", "sentence", "content", "document", "body", "story")
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"))
SECONDS = ("text_pair", "hypothesis", "sentence2", "pair")
PROMPTS = ("prompt", "instruction", "question", "mr", "meaning_representation", "input", "source")
CONTEXTS = ("context", "input")
COMPLETIONS = ("completion", "response", "answer", "output", "ref", "human_reference", "target")
LABELS = ("label", "labels", "class", "category", "label_name", "target", "score", "rating")
MESSAGES, IMAGES = ("messages", "conversation", "conversations"), ("image", "img", "file_name", "path")
ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as a task reads it. ``completion`` makes ``text`` its prompt; ``label`` is a class id or a number."""

    file: str
    line: int
    text: str = ""
    pair: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] = ()
    image: Any = None
    label: int | float | None = None


Getter = Callable[[Record], Any]


@dataclass(frozen=True)
class Columns:
    """How each part of a row is made from a record; ``names`` says it in words, for people."""

    getters: Mapping[str, Getter]
    names: Mapping[str, str]


def read(path: str | Path, section: DataSection, task: Task, labels: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file or folder, one at a time.

    ``labels``: class names in the order of their ids, as in ``model.labels``.

    :raises DataError: with file and line: a broken row, no such column, an empty text, an unknown label.
    """
    columns: Columns | None = None
    for record in records(path):
        columns = columns or find_columns(record, section, task)
        yield _row(record, columns, task, labels)


def find_columns(record: Record, section: DataSection, task: Task) -> Columns:
    """The columns a task reads, judged by the first record.

    :raises DataError: if one that is needed is not there; lists the columns found.
    """
    chosen: dict[str, str] = {}
    if task == "causal-lm":
        chosen = _language(record, section)
    elif task == "image-classification":
        chosen = {"image": _column(record, "image", section.image, IMAGES)}
    else:
        chosen = _texts(record, section)
    if task != "causal-lm":
        chosen["label"] = _column(record, "label", section.label, LABELS)
    return Columns({part: _getter(column) for part, column in chosen.items()}, chosen)


def _language(record: Record, section: DataSection) -> dict[str, str]:
    """Messages, or prompt and completion, or plain text; what the run file names wins."""
    fields = record.fields
    named = bool(section.text or section.prompt or section.messages)
    if section.messages or (not named and _first(fields, MESSAGES)):
        return {"messages": _column(record, "messages", section.messages, MESSAGES)}
    usual = _first(fields, PROMPTS) and _first(fields, COMPLETIONS)
    if section.prompt or (not named and usual and not _first(fields, TEXTS)):
        prompt = _column(record, "prompt", section.prompt, PROMPTS)
        context = _first(fields, CONTEXTS) if prompt == "instruction" and not section.prompt else None
        text = f"{{{prompt}}}\n\n{{{context}}}" if context else prompt
        return {"text": text, "completion": _column(record, "completion", section.completion, COMPLETIONS)}
    return {"text": _column(record, "text", section.text, TEXTS)}


def _texts(record: Record, section: DataSection) -> dict[str, str]:
    """One text or a pair."""
    for first, second in PAIRS:
        if not section.text and not section.text_pair and first in record.fields and second in record.fields:
            return {"text": first, "pair": second}
    chosen = {"text": _column(record, "text", section.text, TEXTS + tuple(first for first, _ in PAIRS))}
    if section.text_pair or (not section.text and _first(record.fields, SECONDS)):
        chosen["pair"] = _column(record, "text_pair", section.text_pair, SECONDS)
    return chosen


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in fields), None)


def _column(record: Record, part: str, wanted: str, usual: Sequence[str]) -> str:
    """The column for ``part``: the one that the run file names, or the first usual name that is there."""
    columns = ", ".join(record.fields) or "none"
    if not wanted:
        found = _first(record.fields, usual)
        if found:
            return found
        expected = f"one of {', '.join(usual)}"
        fix = f'name it in the run file: [data] {part} = "…"'
        raise DataError(f"found the columns {columns}; expected {expected}; {fix}", record.file, record.line)
    for name in _template_names(wanted) or [wanted]:
        if name not in record.fields:
            near = difflib.get_close_matches(name, list(record.fields), 1)
            fix = f'; did you mean "{near[0]}"?' if near else ""
            expected = f'"{name}", which [data] {part} names'
            raise DataError(f"found the columns {columns}; expected {expected}{fix}", record.file, record.line)
    return wanted


def _template_names(value: str) -> list[str]:
    """The columns of a template such as ``{title}. {body}``; empty for the plain name of a column."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(value) if name] if "{" in value else []
    except ValueError:
        return []


def _getter(column: str) -> Getter:
    names = _template_names(column)
    if not names:
        return lambda record: _cell(record, column)

    def fill(record: Record) -> str:
        text = column
        for name in names:
            value = _cell(record, name)
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            text = text.replace(f"{{{name}}}", shown)
        return text.strip()

    return fill


def _cell(record: Record, column: str) -> Any:
    if column not in record.fields:
        columns = ", ".join(record.fields) or "none"
        expected = f'"{column}", which earlier rows have'
        raise DataError(f"found the columns {columns}; expected {expected}", record.file, record.line)
    return record.fields[column]


def _row(record: Record, columns: Columns, task: Task, labels: Sequence[str]) -> Row:
    values = {part: get(record) for part, get in columns.getters.items()}
    for part in ("text", "pair", "completion"):
        if part in values:
            _check_text(values[part], columns.names[part], record)
    if "messages" in values:
        values["messages"] = _messages(values["messages"], record)
    if task == "regression":
        values["label"] = _number(values["label"], record)
    elif task != "causal-lm":
        values["label"] = class_id(values["label"], labels, record.file, record.line)
    return Row(file=record.file, line=record.line, **values)


def _check_text(value: Any, column: str, record: Record) -> None:
    if not isinstance(value, str):
        raise DataError(f'column "{column}": found {_shown(value)}; expected a text', record.file, record.line)
    if not value.strip():
        fix = "remove the row or fill it in"
        raise DataError(f'column "{column}": found an empty text; {fix}', record.file, record.line)


def _messages(value: Any, record: Record) -> tuple[Message, ...]:
    """A list of ``{role, content}`` with at least one answer; ``{from, value}`` is understood too."""
    expected = 'a list such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"messages: found {_shown(value)}; expected {expected}", record.file, record.line)
    other = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
    messages = []
    for i, one in enumerate(value):
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        role = other.get(str(role), role)
        if role not in ROLES or not isinstance(content, str):
            found = f"message {i} with role {_shown(role)} and content {_shown(content)}"
            raise DataError(
                f"found {found}; expected a role of {', '.join(ROLES)} and a text", record.file, record.line
            )
        messages.append({"role": role, "content": content})
    if not any(one["role"] == "assistant" for one in messages):
        raise DataError("found no message of the role assistant; there is nothing to learn", record.file, record.line)
    return tuple(messages)


def _number(value: Any, record: Record) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"label: found {_shown(value)}; expected a finite number", record.file, record.line)
    return number


def class_id(value: Any, labels: Sequence[str], file: str, line: int) -> int:
    """The id of a class given by name or by id.

    :raises DataError: for a name that is not in ``labels``, or an id out of their range.
    """
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    number = _whole(value)
    if number is not None:
        if 0 <= number < len(labels):
            return number
        raise DataError(f"label: found {number}; expected 0 to {len(labels) - 1} ({_listed(labels)})", file, line)
    near = difflib.get_close_matches(str(value), labels, 1)
    fix = f'; did you mean "{near[0]}"?' if near else "; add it to model.labels in the run file"
    raise DataError(f"label: found {_shown(value)}; expected one of {_listed(labels)}, or its id{fix}", file, line)


def _whole(value: Any) -> int | None:
    """The id that ``3``, ``3.0``, ``"3"`` or ``true`` stand for."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (f", … {len(labels)} in all" if len(labels) > 8 else "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
