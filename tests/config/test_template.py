"""The commented run file, the schemas and the reference page say the same as the Structs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fedsplit.config.describe import keys, markdown
from fedsplit.config.load import loads
from fedsplit.config.run import ClientSection, RunFile
from fedsplit.config.schema import schema
from fedsplit.config.template import template
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError
from fedsplit.plan.types import Plan

DOCS = Path(__file__).parents[2] / "docs"
VALUES = {"model": {"path": "x", "task": "classification", "labels": ["a", 'quote "b"']}, "rounds": {"clients": 3}}


def sections() -> list[type[msgspec.Struct]]:
    kinds = [field.type for field in msgspec.structs.fields(RunFile)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)] + [ClientSection]


def test_the_template_loads_with_the_values_given() -> None:
    run = loads(template(VALUES, [{"name": "pi", "data": "a b.jsonl", "cut": (2, 4)}]))
    assert run.model.labels == ("a", 'quote "b"')
    assert run.rounds.clients == 3
    assert run.clients == (ClientSection(name="pi", data="a b.jsonl", cut=(2, 4)),)


def test_what_is_commented_out_is_the_default() -> None:
    text = template(VALUES)
    uncommented = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE).split("#[[clients]]")[0]
    assert loads(uncommented) == loads(text)


def test_every_key_stands_in_the_template_with_its_meaning() -> None:
    text = template(VALUES)
    for section in sections():
        for key in keys(section):
            assert re.search(rf"^#?{key.name} = ", text, re.MULTILINE), key
            assert key.text, f"{section.__name__}.{key.name} has no description"


def test_a_template_that_would_not_load_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.labels"):
        template({"model": {"path": "x", "task": "classification"}})


@pytest.mark.parametrize("kind", [RunFile, DeviceProfile, Plan])
def test_schemas_are_closed_and_described(kind: type[msgspec.Struct]) -> None:
    made = json.loads(json.dumps(schema(kind)))
    assert made["$schema"].endswith("2020-12/schema")
    top = made["$defs"][kind.__name__]
    assert top["additionalProperties"] is False


def test_the_run_schema_knows_words_and_meanings() -> None:
    definitions: dict[str, Any] = schema(RunFile)["$defs"]
    assert set(definitions["ModelSection"]["properties"]["task"]["enum"]) >= {"causal-lm", "classification"}
    assert "aggregation" in definitions["TrainSection"]["properties"]["rounds"]["description"]
    assert definitions["ModelSection"]["required"] == ["path"]


def test_the_reference_page_is_up_to_date() -> None:
    text = (DOCS / "run-file.md").read_text(encoding="utf-8")
    between = text.split("<!-- keys: made by fedsplit.config.describe.markdown -->\n")[1].split("<!-- end of keys -->")[
        0
    ]
    assert between.strip() == markdown().strip(), "paste the output of fedsplit.config.describe.markdown()"


def test_the_example_of_the_page_loads() -> None:
    text = (DOCS / "run-file.md").read_text(encoding="utf-8")
    run = loads(text.split("```toml\n")[1].split("```")[0])
    assert run.clients[0].cut == (1, 5)
