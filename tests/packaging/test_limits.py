"""The house limits: a file is read in one sitting, a function on one screen, and names say what is inside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("fedsplit", "server/fedsplit_server", "client/fedsplit_client", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "manager", "misc"}


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_a_file_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert path.stem not in NAMES_THAT_SAY_NOTHING
    tree = ast.parse(text)
    if tree.body:
        assert ast.get_docstring(tree), f"{where(path)} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{where(path)}:{node.lineno} {node.name} has {lines} lines"
