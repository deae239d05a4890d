"""Real text that every machine has: the documentation strings of Python's own standard library.

The sources are read with ``ast``; no module is imported, so nothing runs and nothing platform-specific is needed.
Two uses: passages labelled with one of six areas (the demo sorts them), and one long text to pretrain a language
model on. A module that this Python does not have (3.13 dropped several) is passed over.

Passages of one docstring always fall into the same part (train, valid, test), chosen by a hash of the docstring, so
that no text is learned and then tested, and a docstring that two Python versions share falls into the same part.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

from fedsplit.data import laws
from fedsplit.data.partition import Manifest, digest, write_jsonl, write_manifest
from fedsplit.errors import DataError

AREAS = ("networking", "text", "numerics", "files", "concurrency", "language")
"""The six labels; a label's id is its position."""

MODULES: dict[str, str] = {
    "networking": """asynchat asyncore cgi ftplib http imaplib ipaddress nntplib poplib smtpd smtplib socket
        socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc""",
    "text": """_markupbase _pylong codecs configparser csv difflib email encodings gettext html json locale plistlib
        pprint re reprlib shlex string stringprep textwrap tomllib xml""",
    "numerics": """_pydatetime _pydecimal _strptime bisect calendar colorsys datetime fractions heapq numbers random
        statistics zoneinfo""",
    "files": """_compression _pyio bz2 dbm filecmp fileinput fnmatch genericpath glob gzip linecache lzma mailbox
        mimetypes netrc ntpath os pathlib posixpath shelve shutil sqlite3 stat tarfile tempfile zipapp zipfile""",
    "concurrency": """_threading_local asyncio concurrent multiprocessing queue sched selectors signal subprocess
        threading""",
    "language": """ast bdb code codeop compileall dis doctest importlib inspect modulefinder opcode pdb pkgutil
        profile pstats py_compile pyclbr pydoc runpy symtable tabnanny timeit token tokenize trace traceback tracemalloc
        typing unittest warnings zipimport""",
}
"""Which top-level modules and packages belong to which area."""

Part = Literal["all", "train", "valid", "test"]

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
_MIN_CHARS, _MAX_CHARS, _MIN_WORDS = 40, 280, 7
_CAP = 640
"""Passages kept of one area, so that the areas are balanced; which ones is decided by their hash."""


class Passage(NamedTuple):
    """A few sentences of documentation, the area of the module they come from, and that module."""

    text: str
    label: str
    module: str


class Docstring(NamedTuple):
    """One documentation string, cleaned as ``inspect.cleandoc`` does, and where it stands."""

    module: str
    symbol: str
    text: str


def stdlib_folder() -> Path:
    """Where this Python keeps the sources of its standard library.

    :raises DataError: if there are no sources (a stripped or frozen Python).
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not (folder / "socket.py").is_file():
        raise DataError(f"this Python has no sources of its standard library at {folder}; expected socket.py there")
    return folder


def sources(folder: Path | None = None) -> Iterator[tuple[str, Path]]:
    """(dotted module name, file) of every module, sorted by name; tests and bundled applications left out."""
    root = folder or stdlib_folder()
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.isdisjoint(parts):
            found.append((".".join(parts).removesuffix(".__init__"), path))
    return iter(sorted(found))


def docstrings(module: str, path: Path) -> Iterator[Docstring]:
    """Every documentation string of one source file in the order of the file; a file that does not parse has none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _walk(tree, module, "")


def _walk(node: ast.AST, module: str, prefix: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        name = getattr(node, "name", "")
        prefix = f"{prefix}.{name}" if prefix and name else name or prefix
        text = ast.get_docstring(node)
        if text:
            yield Docstring(module, prefix, inspect.cleandoc(text))
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, module, prefix)


def passages(text: str) -> list[str]:
    """Cut a docstring into passages of at most about 280 characters, at paragraph and then at sentence ends.

    Doctest lines and tables are left out; white space becomes single spaces; what is too short to say anything goes.
    """
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines()]
        if any(line.startswith((">>>", "...", "+--", "|")) for line in lines):
            continue
        kept.extend(_join(re.split(r"(?<=[.!?:])\s+", " ".join(lines).strip())))
    merged = _join(kept)
    return [one for one in merged if len(one) >= _MIN_CHARS and len(re.findall(r"[A-Za-z]{2,}", one)) >= _MIN_WORDS]


def _join(pieces: list[str]) -> list[str]:
    """Neighbouring pieces are joined while they stay within the limit; a longer single piece is cut at a word."""
    out: list[str] = []
    for piece in pieces:
        piece = re.sub(r"\s+", " ", piece)
        while len(piece) > _MAX_CHARS:
            at = piece.rfind(" ", 0, _MAX_CHARS)
            at = at if at > 0 else _MAX_CHARS
            out.append(piece[:at])
            piece = piece[at:].strip()
        if out and piece and len(out[-1]) + 1 + len(piece) <= _MAX_CHARS:
            out[-1] = f"{out[-1]} {piece}"
        elif piece:
            out.append(piece)
    return out


def examples(part: Part = "all") -> list[Passage]:
    """Labelled passages, the same list on every call: about 600 of each area, shuffled by hash, no text twice.

    ``train`` holds 70 %, ``valid`` 10 %, ``test`` 20 % of the docstrings.

    :raises DataError: if this Python has no sources of its standard library.
    """
    return [passage for passage, its_part in _examples() if part in ("all", its_part)]


@cache
def _examples() -> tuple[tuple[Passage, str], ...]:
    area_of = {name: area for area, names in MODULES.items() for name in names.split()}
    seen: set[str] = set()
    by_area: dict[str, list[tuple[str, Passage, str]]] = {area: [] for area in AREAS}
    for module, path in sources():
        area = area_of.get(module.split(".")[0])
        for doc in docstrings(module, path) if area else ():
            part = _part(doc.text)
            for text in passages(doc.text):
                if area and (key := _digest(text.lower())) not in seen:
                    seen.add(key)
                    by_area[area].append((key, Passage(text, area, module), part))
    kept = [one for rows in by_area.values() for one in sorted(rows)[:_CAP]]
    return tuple((passage, part) for _, passage, part in sorted(kept))


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def _part(text: str) -> str:
    """70 / 10 / 20 by hash of the whole docstring."""
    percent = int(_digest(text)[:8], 16) % 100
    return "train" if percent < 70 else "valid" if percent < 80 else "test"


class ClientFiles(NamedTuple):
    """Where ``write_clients`` put the rows: a file a device, and the operator's two sets over all areas."""

    clients: dict[str, Path]
    valid: Path
    test: Path


def write_clients(
    folder: str | Path,
    names: Sequence[str] = ("device-1", "device-2", "device-3"),
    strangers: float = 0.1,
    seed: int = 0,
) -> ClientFiles:
    """Unlike JSONL files for the demo: every device owns two of the six areas, about a tenth of its rows are strangers.

    Rows are ``{"text", "label" (the area's name), "module"}``; ``model.labels`` of the run file is ``AREAS``. The
    devices share out the train part without overlap and each file has a manifest; ``valid.jsonl`` and ``test.jsonl``
    hold all areas, in turn.

    :raises DataError: if this Python has no sources of its standard library.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    train = examples("train")
    # Rounded up: with four or five devices some share an area, and none is left to nobody.
    per_client = -(-len(AREAS) // len(names))
    parts = laws.owned([one.label for one in train], len(names), per_client, strangers, seed)
    files: dict[str, Path] = {}
    for name, rows in zip(names, parts, strict=True):
        files[name] = target / f"{name}.jsonl"
        chosen = [train[int(i)] for i in rows]
        write_jsonl(files[name], (one._asdict() for one in chosen))
        manifest = Manifest(
            client=name,
            file=files[name].name,
            rows=len(chosen),
            sha256=digest(files[name]),
            source=f"documentation strings of the standard library of Python {sys.version.split()[0]}",
            source_sha256=_digest("\n".join(one.text for one in train)),
            law="label",
            seed=seed,
            clients=len(names),
            field="label",
            options={"per_client": per_client, "strangers": strangers},
            values=dict(sorted(Counter(one.label for one in chosen).items())),
        )
        write_manifest(target, manifest)
    held_out = {part: target / f"{part}.jsonl" for part in ("valid", "test")}
    write_jsonl(held_out["valid"], (one._asdict() for one in _in_turn(examples("valid"))))
    write_jsonl(held_out["test"], (one._asdict() for one in _in_turn(examples("test"))))
    return ClientFiles(files, **held_out)


def _in_turn(rows: Sequence[Passage]) -> list[Passage]:
    """One of each area after the other while they last, so that the first rows of a file are a fair sample."""
    of_area = [[one for one in rows if one.label == area] for area in AREAS]
    return [one for group in zip_longest(*of_area) for one in group if one is not None]


def topics() -> dict[str, str]:
    """The language reference as ``pydoc`` shows it (``help('while')``), by topic; empty if this Python lacks it."""
    path = stdlib_folder() / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            value = ast.literal_eval(node.value)
            return {str(name): str(text) for name, text in sorted(value.items())}
    return {}


def pydoc_documents() -> list[tuple[str, str]]:
    """(module, text) of the whole documentation: one document a module or reference topic, no docstring twice.

    A document is its docstrings in the order of the source, each under a line ``module.symbol``. About 2.5 million
    characters with Python 3.11.
    """
    seen: set[str] = set()
    documents = []
    for module, path in sources():
        parts = []
        for doc in docstrings(module, path):
            key = _digest(doc.text)
            if len(doc.text) >= 20 and key not in seen:
                seen.add(key)
                parts.append(f"{module}.{doc.symbol}".rstrip(".") + f"\n{doc.text}")
        if parts:
            documents.append((module, "\n\n".join(parts)))
    return documents + [(f"topic:{name}", text.strip()) for name, text in topics().items()]


def pydoc_corpus() -> str:
    """All documents as one text, separated by two blank lines."""
    return "\n\n\n".join(text for _, text in pydoc_documents())
