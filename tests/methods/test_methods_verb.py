"""``fedsplit methods``: the list, one method, JSON, and the table that the docs print."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.methods import CAPABILITIES, markdown_table
from fedsplit.cli.verbs import VERBS
from fedsplit.method.record import SLOTS
from fedsplit.method.registry import cards, names

RUN = CliRunner()
APP = make_app(VERBS)


def output(*arguments: str) -> str:
    result = RUN.invoke(APP, ["methods", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_names_every_method() -> None:
    text = output()
    for name in names():
        assert name in text


def test_json_has_a_row_a_method() -> None:
    rows = json.loads(output("--json"))["methods"]
    assert [row["name"] for row in rows] == list(names())
    for row in rows:
        assert {"name", "paper", "title", "idea", "up", "down", "options", "parts", *CAPABILITIES} <= row.keys()


def test_one_method_with_its_parts_and_options() -> None:
    text = output("show", "fedavg")
    for word in (*SLOTS, "server_learning_rate", "arXiv:1602.05629"):
        assert word in text
    assert json.loads(output("show", "fedavg", "--json"))["name"] == "fedavg"


def test_an_unknown_method_is_one_line_and_exit_code_2() -> None:
    result = RUN.invoke(APP, ["methods", "show", "fedavgg"])
    assert result.exit_code == 2
    assert "did you mean fedavg?" in result.output
    assert "Traceback" not in result.output


def test_the_docs_print_the_table_of_the_registry() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    table = page.partition("<!-- methods:begin -->\n")[2].partition("<!-- methods:end -->")[0]
    assert table == markdown_table(cards()), "run: fedsplit methods --markdown, and paste it between the markers"
    assert output("--markdown") == table


def test_the_docs_explain_every_part() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for slot in SLOTS:
        assert f"| `{slot}` |" in page
