"""Files of rows as a stream of records, whatever their format; what is broken is named with file and line.

A record is the row as it stands in the file. What its columns mean is decided in ``rows.py``.
"""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from fedsplit.data import columnar, images
from fedsplit.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".npz", ".parquet", ".arrow")
"""What can be read, the first six also with ``.gz``; and folders of images or of Hugging Face datasets."""

_IMAGES_IN_FOLDERS = "a folder with one sub-folder of images a class"


class Record(NamedTuple):
    """One row: its columns, the file and the line (from 1; the row's number where a format has no lines)."""

    fields: Mapping[str, Any]
    file: str
    line: int


def records(path: str | Path) -> Iterator[Record]:
    """The rows of a file or folder, one at a time; memory does not grow with the file.

    :raises DataError: for a file that is absent, empty, of an unknown format, or broken (with the line).
    """
    file = Path(path).expanduser()
    rows = iter(_open(file))
    first = next(rows, None)
    if first is None:
        raise DataError("the file is empty; expected at least one row", str(file))
    yield first
    yield from rows


def describe(path: str | Path) -> str:
    """How ``records`` reads this path, in a few words.

    :raises DataError: for a path that is absent or of an unknown format.
    """
    file = Path(path).expanduser()
    kind = _kind(file)
    match kind:
        case ".txt":
            return "text, documents separated by blank lines" if _has_blank_lines(file) else "text, one document a line"
        case ".csv" | ".tsv":
            return f"{kind[1:].upper()} with a header line" + (", no quoting" if kind == ".tsv" else "")
        case "images":
            return _IMAGES_IN_FOLDERS
        case "columnar" | ".parquet" | ".arrow":
            return "a Hugging Face datasets folder" if kind == "columnar" else f"{kind[1:]} table"
    return f"{kind[1:].upper()}" + (", one object a line" if kind in (".jsonl", ".ndjson") else "")


def _kind(file: Path) -> str:
    """The suffix without ``.gz``, or ``images`` or ``columnar`` for a folder."""
    if columnar.names_a_dataset(file):
        return "columnar"
    if file.is_dir():
        if images.is_image_folder(file):
            return "images"
        inside = ", ".join(sorted(one.name for one in file.iterdir())[:5]) or "nothing"
        expected = f"{_IMAGES_IN_FOLDERS}, or a Hugging Face datasets folder (.arrow or .parquet files)"
        raise DataError(f"found a folder with {inside}; expected {expected}; or name one file", str(file))
    if not file.exists():
        raise DataError("there is no such file; check the path", str(file))
    suffixes = [one.lower() for one in file.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else suffixes[-1] if suffixes else ""
    if kind not in SUFFIXES:
        raise DataError(f'found the ending "{file.suffix}"; expected one of {" ".join(SUFFIXES)}', str(file))
    return kind


def _open(file: Path) -> Iterator[Record]:
    match _kind(file):
        case ".jsonl" | ".ndjson":
            return _json_lines(file)
        case ".json":
            return _json(file)
        case ".csv":
            return _csv(file, csv.excel)
        case ".tsv":
            return _csv(file, _Tabs)
        case ".txt":
            return _text(file)
        case ".npz":
            return (Record(fields, str(file), i) for i, fields in enumerate(images.npz_rows(file), 1))
        case "images":
            return (Record(fields, fields["image"], 1) for fields in images.folder_rows(file))
    return (Record(fields, str(file), i) for i, fields in enumerate(columnar.rows(file), 1))


class _Tabs(csv.excel_tab):
    """Tab-separated files as benchmark sets write them: a quotation mark is a character like any other."""

    quoting = csv.QUOTE_NONE


@contextmanager
def _reading(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked; damage in the container becomes a DataError."""
    try:
        packed = file.suffix.lower() == ".gz"
        with cast(IO[bytes], gzip.open(file)) if packed else file.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"the gzip file is damaged ({error}); fetch or pack it again", str(file)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", str(file)) from None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number, line with its end) of a UTF-8 file; a byte-order mark is skipped."""
    with _reading(file) as stream:
        for number, raw in enumerate(stream, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode()
            except UnicodeDecodeError as error:
                fix = "save it as UTF-8"
                raise DataError(f"byte {error.start} of the line is not UTF-8; {fix}", str(file), number) from None


def _json_lines(file: Path) -> Iterator[Record]:
    decoder = msgspec.json.Decoder()
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            fields = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"not a JSON object: {error}; found {_short(line)}", str(file), number) from None
        if not isinstance(fields, dict):
            raise DataError(f'expected a JSON object such as {{"text": "…"}}; found {_short(line)}', str(file), number)
        yield Record(fields, str(file), number)


def _json(file: Path) -> Iterator[Record]:
    """One list of objects; a file with an object a line is taken for what it is."""
    with _reading(file) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        rest = stream.read() if start.startswith(b"[") else b""
    if not start.startswith(b"["):
        yield from _json_lines(file)
        return
    try:
        rows = msgspec.json.decode(start + rest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON: {error}", str(file)) from None
    for number, fields in enumerate(rows, 1):
        if not isinstance(fields, dict):
            raise DataError("expected a list of objects; this item is none", str(file), number)
        yield Record(fields, str(file), number)


def _csv(file: Path, dialect: type[csv.Dialect]) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader((line for _, line in _lines(file)), dialect, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        _check_header(header, file)
        for row in reader:
            if row and any(row):
                yield Record(_fields(header, row, file, reader.line_num), str(file), reader.line_num)
    except csv.Error as error:
        raise DataError(f"not a valid row: {error}", str(file), reader.line_num) from None


def _check_header(header: list[str], file: Path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or not any(header):
        found = f"the column {twice[0]!r} twice" if twice else "an empty line"
        raise DataError(f"the first line must name every column once; found {found}", str(file), 1)


def _fields(header: list[str], row: list[str], file: Path, line: int) -> dict[str, str]:
    if len(row) != len(header):
        found = f"{len(row)} fields, expected {len(header)} ({', '.join(header)})"
        raise DataError(f"found {found}; quote fields that contain the separator", str(file), line)
    return dict(zip(header, row, strict=True))


def _has_blank_lines(file: Path) -> bool:
    """True if a blank line stands between two lines with text."""
    seen_text = seen_blank = False
    for _, line in _lines(file):
        if line.strip():
            if seen_blank:
                return True
            seen_text = True
        else:
            seen_blank = seen_text
    return False


def _text(file: Path) -> Iterator[Record]:
    """Documents: separated by blank lines if the file has any, else one a line. The line is where it starts."""
    paragraphs = _has_blank_lines(file)
    document: list[str] = []
    start = 1
    for number, line in _lines(file):
        if line.strip():
            start = start if document else number
            document.append(line.rstrip("\r\n"))
        if document and not (paragraphs and line.strip()):
            yield Record({"text": "\n".join(document)}, str(file), start)
            document = []
    if document:
        yield Record({"text": "\n".join(document)}, str(file), start)


def _short(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 60 else line[:57] + "…")
