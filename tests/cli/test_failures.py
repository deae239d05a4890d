"""A child process that fails: its parent says the same and ends with the same code."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fedsplit.cli.failures import failure
from fedsplit.cli.simulate import Crew
from fedsplit.errors import ConfigError, DataError, FedsplitError, LinkError, PlanError, ProtocolError
from fedsplit.events import silent
from tests.waiting import LIMIT_S


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, ConfigError),
        (3, PlanError),
        (4, LinkError),
        (5, ProtocolError),
        (6, DataError),
        (7, FedsplitError),
        (8, FedsplitError),
        (70, FedsplitError),
    ],
)
def test_the_code_and_the_words_are_kept(code: int, kind: type[FedsplitError]) -> None:
    error = failure("client a", code, "error: rows.jsonl:2: found 7\n")
    assert type(error) is kind
    assert error.exit_code == code
    assert str(error) == "client a failed: rows.jsonl:2: found 7"


def test_a_child_that_says_nothing() -> None:
    assert str(failure("the server", 7, "")) == "the server failed: exit status 7"


def test_a_child_that_was_killed() -> None:
    error = failure("client a", -signal.SIGKILL, "")
    assert error.exit_code == 4
    assert str(error) == "client a was killed by SIGKILL (systems do that when memory runs out)"
    assert str(failure("client a", -99, "x")) == "client a was killed by signal 99:\nx"


def test_a_real_child_with_a_run_file_that_is_not_there(tmp_path: Path) -> None:
    with Crew(silent) as crew:
        crew.start("", ["serve", str(tmp_path / "nothing.toml")])
        with pytest.raises(ConfigError, match=r"the server failed: .*nothing\.toml") as error:
            crew.wait_for_file(tmp_path / "link", LIMIT_S)
    assert error.value.exit_code == 2
