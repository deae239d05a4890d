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


def test_show_explains_with_equations_and_counts_what_travels_with_a_model() -> None:
    text = output("show", "rolora", "--model", "minilm", "--targets", "intermediate.dense")
    assert "odd t:  B rests, common to all    A <- sum_k p_k A_k" in text
    assert "round 0, 2, ...: up" in text
    assert "round 1, 3, ...: up" in text

    def cost(*arguments: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = json.loads(output("show", *arguments, "--json"))["cost"]
        return rows

    # 6 layers, query and value of 384 x 384, rank 8.
    both = 6 * 2 * 8 * (384 + 384)
    (fedavg,) = cost("fedavg", "--model", "minilm")
    assert (fedavg["down"], fedavg["up"], fedavg["fold"]) == (both, both, 0)
    (flora,) = cost("flora", "--model", "minilm", "--rank", "4")
    assert (flora["up"], flora["fold"]) == (both // 2, both // 2)
    even, odd = cost("rolora", "--model", "minilm", "--targets", "intermediate.dense")
    assert (even["up"], odd["up"], even["down"]) == (6 * 8 * 1536, 6 * 8 * 384, 6 * 8 * (1536 + 384))
    assert cost("fedavg") == []
    for arguments, words in (
        (["--model", "minilm", "--rank", "400"], "--rank: found 400, expected 1 to 384"),
        (["--model", "minilm", "--targets", "qeury"], "did you mean 'query'"),
        (["--set", "weigths=uniform"], "did you mean weights"),
        (["--rank", "4"], "--rank: found 4, expected none; add --model, e.g. --model minilm"),
        (["--targets", "query"], "--targets: found query, expected none; add --model"),
    ):
        result = RUN.invoke(APP, ["methods", "show", "fedavg", *arguments])
        assert result.exit_code == 2
        assert words in result.output


def test_the_card_is_of_the_method_with_the_options_given() -> None:
    v3 = json.loads(output("show", "splitfed", "--set", "version=v3", "--json"))
    assert (v3["parts"]["layers"], v3["parts"]["personal"]) == ("at_server", "keep_layers")
    text = output("show", "flasc", "--set", "down=0.5")
    assert "0.25·R(M+N) up, 0.5·R(M+N)" in text
    assert "float; default 0.25; here 0.5" in text


def test_an_unknown_method_is_one_line_and_exit_code_2() -> None:
    result = RUN.invoke(APP, ["methods", "show", "fedavgg"])
    assert result.exit_code == 2
    assert "did you mean fedavg" in result.output
    assert "Traceback" not in result.output


WRONG = '''
from fedsplit.method import Merged, Method, mean, merge_rule, method


@method(paper="none", title="Right")
def right() -> Method:
    """Average."""
    return Method()


@method(paper="none", title="First")
def first(which: int = 0) -> Method:
    """Keep one client, and say that it is exact."""
    @merge_rule(equal_ranks=True, exact=True)
    def merge(parts, p_K, memory):
        return Merged(parts[which])
    return Method(merge=merge)
'''


def test_check_says_which_law_breaks_and_where(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(WRONG, "utf-8")
    assert "laws that bind it hold" in output("check", "rbla")
    assert "  broken " not in output("check", f"{mine}:right")
    result = RUN.invoke(APP, ["methods", "check", str(mine), "--json"])
    assert result.exit_code == 2, result.output
    assert "first breaks 1 of the laws" in result.output
    rows = {row["name"]: row for row in json.loads(result.output[: result.output.rindex("}") + 1])["methods"]}
    assert rows["right"]["holds"]
    broken = {law["law"]: law["broken"] for law in rows["first"]["laws"] if law["broken"]}
    assert broken.keys() == {"an exact method gives the dense ideal"}
    assert "is off by" in broken["an exact method gives the dense ideal"]
    result = RUN.invoke(APP, ["methods", "check", f"{mine}:first", "--set", "which=5"])
    assert result.exit_code == 2
    assert "IndexError: list index out of range (mine.py:16)" in result.output
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
