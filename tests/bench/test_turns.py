"""Children that take turns: a step when told to, a clear word when they fail, and cores that are given back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fedsplit.cli.bench_turns import Turns, on_cores, processor_seconds
from fedsplit.errors import LinkError

GOOD = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for number, _ in enumerate(sys.stdin):
    print(json.dumps({"seconds": float(number), "words": sys.argv[1:]}), flush=True)
"""
BAD = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
sys.stdin.readline()
sys.exit("no more memory")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path / "taking_turns.py"


def test_one_answer_a_turn(module: Path) -> None:
    module.write_text(GOOD)
    with Turns("taking_turns", ["a", "b"], 1, {}) as child:
        child.ready()
        assert child.step() == {"seconds": 0.0, "words": ["a", "b"]}
        assert child.step()["seconds"] == 1.0
        assert processor_seconds([child.pid]) >= 0.0


def test_a_child_that_fails_says_why(module: Path) -> None:
    module.write_text(BAD)
    with Turns("taking_turns", [], 1, {}) as child:
        child.ready()
        with pytest.raises(LinkError, match="taking_turns failed:\nno more memory"):
            child.step()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process choose its cores")
def test_cores_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with on_cores(1) as count:
        assert count == 1
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
