"""docs/python-api.md tells the truth: every call it shows exists and takes the arguments it shows."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import fedsplit
from fedsplit import errors, events
from fedsplit.testing import faults, loopback, models
from fedsplit_client.join import Joined
from fedsplit_server.serve import Served

TEXT = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def calls() -> list[tuple[str, ast.Call]]:
    """Every ``fedsplit.NAME(…)`` of the page."""
    nodes = [node for block in BLOCKS for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    return [
        (node.func.attr, node)
        for node in nodes
        if isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "fedsplit"
    ]


def test_all_public_functions_are_shown() -> None:
    functions = {name for name in fedsplit.__all__ if name[0].islower()}
    assert {name for name, _ in calls()} == functions
    assert all(f"`fedsplit.{name}`" in TEXT for name in set(fedsplit.__all__) - functions - {"__version__"})


@pytest.mark.parametrize(("name", "call"), calls(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_call_takes_what_is_shown(name: str, call: ast.Call) -> None:
    named: dict[str, Any] = {str(keyword.arg): None for keyword in call.keywords}
    inspect.signature(getattr(fedsplit, name)).bind(*(None for _ in call.args), **named)


@pytest.mark.parametrize(("variable", "kind"), [("served", Served), ("joined", Joined)])
def test_results_have_what_is_shown(variable: str, kind: type) -> None:
    shown = set(re.findall(rf"\b{variable}\.(\w+)", "\n".join(BLOCKS)))
    assert shown
    assert shown <= {field.name for field in fields(kind)} | set(dir(kind))


def test_imports_work() -> None:
    for block in BLOCKS:
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom):
                exec(compile(ast.Module([node], []), "python-api.md", "exec"), {})


def test_events_and_errors_are_all_named() -> None:
    assert {kind.__name__ for kind in events.Event.__subclasses__()} <= set(re.findall(r"`(\w+)`", TEXT))
    shown = re.findall(r"^\| (`.+?) \| .* \| (\d+) \|$", TEXT, flags=re.MULTILINE)
    assert len(shown) == 7
    for names, code in shown:
        for name in re.findall(r"`(\w+)`", names):
            assert getattr(errors, name).exit_code == int(code)


def test_the_fakes_are_there() -> None:
    assert callable(models.tiny)
    assert callable(loopback.Loopback)
    assert callable(faults.Faults)
