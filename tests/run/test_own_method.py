"""A method of one's own: the example of the docs in a whole run, and what is refused before a device trains."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsplit.config.load import load, loads
from fedsplit.errors import ConfigError, FedsplitError, IncompatibleParts
from fedsplit.method import Method, mean
from fedsplit.method.check import check
from fedsplit.method.registry import find
from fedsplit.method.server_opt import momentum
from fedsplit_server.serve import method_of
from tests.run.conftest import Rows, run_file
from tests.run.party import Party

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
HEAD = "from fedsplit.method import *\nimport numpy as np\n\n\n@method(paper='arXiv:0', title='Mine')\ndef mine():\n"
METHOD = HEAD + '    """Words."""\n    def merge(parts, p_K, memory):\n        {}\n    return Method(merge={})\n'


def docs_example(folder: Path) -> str:
    """The docs' file, written to ``folder``; what the docs' run file calls it."""
    text = DOCS.read_text("utf-8")
    code = re.search(r"```python\n# mine\.py\n(.*?)```", text, re.DOTALL)
    name = re.search(r'^name = "(\./mine\.py:\w+)"$', text, re.MULTILINE)
    assert code
    assert name
    (folder / "mine.py").write_text(code[1], "utf-8")
    return name[1]


def refused(folder: Path, body: str, merge: str = "merge") -> str:
    """What ``serve`` says to a method whose merge function is ``body``."""
    path = folder / "own.py"
    path.write_text(METHOD.format(body, merge), "utf-8")
    with pytest.raises(ConfigError) as caught:
        method_of(loads(run_file({"a": ""}, method__name=f"{path}:mine")))
    return str(caught.value)


def test_the_docs_example_runs_from_its_run_file(
    reference: Callable[..., Party], rows: Callable[[str], dict[str, Rows]], tmp_path: Path
) -> None:
    clients = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "local"'}
    run_toml = tmp_path / "run.toml"
    run_toml.write_text(run_file(clients, method__name=docs_example(tmp_path)), "utf-8")
    with Party(load(run_toml), rows("ab"), tmp_path) as own:
        state = own.start().finish().keeper.state
    average = reference(clients).keeper.state
    assert state.round == 2
    assert own.digest != reference(clients).digest
    assert {key: part.rank for key, part in state.adapter.items()} == dict.fromkeys(average.adapter, 3)


def test_a_plain_function_that_only_averages_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(METHOD.format("return Merged(mean(parts, p_K))", "merge"), "utf-8")
    assert method_of(loads(run_file({"a": ""}, method__name=f"{path}:mine"))).name == "mine"
    assert find("own.py:mine", tmp_path).card.mutates_base  # nothing good is assumed of it


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "return Merged(mean(parts, p_K), fold=type(parts[0])(parts[0].B_MR[:3], parts[0].A_RN))",
            ("7 x 11 become 3 x 11", "rank may change"),
        ),
        (
            "return Merged(type(parts[0])(parts[0].B_MR[:3], parts[0].A_RN))",
            ("7 x 11 become 3 x 11", "rank may change"),
        ),
        ("return mean(parts, p_K)", ("merge returns LowRank, expected Merged", "return Merged(adapter=...)")),
        ("raise SystemExit(0)", ("with 3 made-up clients fails: SystemExit", "own.py:9")),
        ("return Merged(parts[7])", ("with 3 made-up clients fails: IndexError", "own.py:9")),
    ],
)
def test_what_devices_cannot_follow_is_refused_by_what_it_does(
    body: str, words: tuple[str, str], tmp_path: Path
) -> None:
    message = refused(tmp_path, body)
    assert all(word in message for word in words), message


def test_a_merge_that_lets_the_rank_grow_is_taken(tmp_path: Path) -> None:
    """The ranks part cuts the sum to every client's rank before the next round."""
    path = tmp_path / "own.py"
    path.write_text(METHOD.format("return Merged(total(parts, p_K))", "merge"), "utf-8")
    for ranks in ([], [2, 1]):
        text = run_file({"a": ""}, method__name=f"{path}:mine", plan__layers="fit", plan__ranks=ranks)
        assert method_of(loads(text)).name == "mine"


def test_mixed_ranks_need_a_method_that_takes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.ranks: found \[1\] with method 'fedavg'"):
        method_of(loads(run_file({"a": ""}, plan__layers="fit", plan__ranks=[1])))
    path = tmp_path / "own.py"
    path.write_text(METHOD.format("return Merged(mean(parts, p_K))", "merge"), "utf-8")
    run = loads(run_file({"a": ""}, method__name=f"{path}:mine", plan__layers="fit", plan__ranks=[2, 1]))
    with pytest.raises(FedsplitError, match="clients sent ranks 1, 2, 3 for one module"):
        method_of(run)


def test_a_merge_that_folds_the_residual_of_averaging_is_followed(party: Callable[..., Party], tmp_path: Path) -> None:
    """FedEx-LoRA in three lines, in a split run: what the server has is what the devices have."""
    path = tmp_path / "own.py"
    body = "average = mean(parts, p_K)\n        return Merged(average, fold=total(parts, p_K) - average)"
    path.write_text(METHOD.format(body, "merge"), "utf-8")
    clients = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "local"'}
    split = party(clients, method__name=f"{path}:mine")
    whole = party(dict.fromkeys(clients, 'topology = "local"'), method__name=f"{path}:mine")
    assert split.keeper.state.base_version == 2
    assert split.digest == whole.digest


def test_an_undeclared_merge_with_momentum_says_how_to_declare_it() -> None:
    def own(parts, p_K, memory):  # type: ignore[no-untyped-def]  # as a newcomer writes it
        return mean(parts, p_K)

    with pytest.raises(IncompatibleParts, match=r"if it holds, write @merge_rule\(equal_ranks=True\)"):
        check(Method(merge=own, server_opt=momentum()))
