"""Rows that every machine has, and run files on the model that ships."""

from __future__ import annotations

import inspect
import json as json_module
import random
import string
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from fedsplit.testing.faults import Faults
from tests.run.party import Party, written
from tests.run.processes import Stage

Rows = list[dict[str, object]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Paragraphs of the standard library's documentation, the same on every machine of one Python version."""
    found = []
    for module in (textwrap, random, string, inspect, json_module):
        for name, value in sorted(vars(module).items()):
            doc = inspect.getdoc(value) if callable(value) and not name.startswith("_") else None
            if doc and len(doc) > 40:
                found.append(" ".join(doc.split())[:400])
    return sorted(set(found))


@pytest.fixture(scope="session")
def rows(texts: list[str]) -> Callable[[str], dict[str, Rows]]:
    """Rows for clients ``"abc"``: texts, with the label that classification needs."""

    def make(names: str) -> dict[str, Rows]:
        share = {name: texts[index::4] for index, name in enumerate(names)}
        return {
            name: [{"text": text, "label": ("short", "long")[len(text) > 150]} for text in own]
            for name, own in share.items()
        }

    return make


@pytest.fixture
def stage(tmp_path: Path, rows: Callable[[str], dict[str, Rows]]) -> Iterator[Callable[[str], Stage]]:
    """``stage(run_file)``: its processes, with rows for clients ``a``, ``b`` and ``c``; ended afterwards."""
    made: list[Stage] = []

    def make(text: str) -> Stage:
        data = {name: written(tmp_path / f"{name}.jsonl", own) for name, own in rows("abc").items()}
        made.append(Stage(tmp_path, text, data))
        return made[-1]

    yield make
    for one in made:
        one.__exit__()


@pytest.fixture
def party(tmp_path: Path, rows: Callable[[str], dict[str, Rows]]) -> Iterator[Callable[..., Party]]:
    """``party({"a": 'topology = "w"'}, …)``: a finished run of these clients; see ``run_file`` for the settings."""
    made: list[Party] = []

    def make(
        clients: Mapping[str, str],
        *,
        faults: Faults | None = None,
        start: bool = True,
        data: Mapping[str, Rows] | None = None,
        **settings: object,
    ) -> Party:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        one = Party(run_file(clients, **settings), _sorted(data or rows("".join(clients)), clients), folder, faults)
        made.append(one)
        return one.start().finish() if start else one

    yield make
    for one in made:
        one.world.close()


@pytest.fixture(scope="session")
def reference(
    tmp_path_factory: pytest.TempPathFactory, rows: Callable[[str], dict[str, Rows]]
) -> Iterator[Callable[..., Party]]:
    """As ``party``: the run to which nothing happens, each computed once."""
    known: dict[str, Party] = {}

    def make(clients: Mapping[str, str], **settings: object) -> Party:
        text = run_file(clients, **settings)
        if text not in known:
            folder = tmp_path_factory.mktemp("reference")
            known[text] = Party(text, _sorted(rows("".join(clients)), clients), folder).start().finish()
        return known[text]

    yield make
    for one in known.values():
        one.world.close()


def _sorted(data: Mapping[str, Rows], clients: Mapping[str, str]) -> dict[str, Rows]:
    """In the order of the clients, which is that of their joining."""
    return {name: data[name] for name in clients}


def run_file(clients: Mapping[str, str], **settings: object) -> str:
    """A run file. ``settings`` are ``section__key=value``, over small defaults."""
    values: dict[str, object] = {
        "model__path": "pydoc-llama",
        "model__max_length": 32,
        "lora__rank": 3,
        "train__rounds": 2,
        "train__steps": 2,
        "train__batch": 4,
        "train__micro_batches": 2,
        "train__learning_rate": 0.01,
        "train__clip": 1.0,
        "rounds__clients": len(clients),
        "policy__shares_labels": True,
        "policy__exposes_tokens": True,
        "policy__min_front": 0,
        "evaluate__every": 0,
    } | settings
    sections: dict[str, list[str]] = {}
    for key, value in values.items():
        section, _, name = key.partition("__")
        sections.setdefault(section, []).append(f"{name} = {json_module.dumps(value)}")
    lines = [f"[{section}]\n" + "\n".join(own) for section, own in sections.items()]
    return "\n".join(lines + [f'[[clients]]\nname = "{name}"\n{text}' for name, text in clients.items()])
