"""A client that nobody answers, and one whose memory ends in the middle of a step: what its owner is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsplit.cli.main import run as command
from fedsplit.devices.load import load
from fedsplit.errors import Timeout
from fedsplit.events import Event, Note
from fedsplit.testing.loopback import Loopback
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Hello
from fedsplit_client import gauge, worker
from fedsplit_client.session import Session
from tests.run.conftest import Rows, run_file
from tests.run.party import LAPTOP, written
from tests.run.processes import Stage
from tests.waiting import LIMIT_S


def test_a_server_that_hangs_is_named_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Loopback()
    end, seconds, events = link.dealer("a"), [0.0], list[tuple[float, Event]]()

    def receive(timeout_s: float) -> None:
        seconds[0] += timeout_s

    monkeypatch.setattr(end, "receive", receive)
    where, clock = JoinLink("10.0.0.5", 5700), lambda: seconds[0]
    session = Session(end, where, "a", LAPTOP, "", lambda event: events.append((seconds[0], event)), clock=clock)
    with pytest.raises(Timeout, match=r"10\.0\.0\.5:5700 did not answer within 60 s; look at the server's terminal"):
        session.hello()
    [(at, note)] = events
    assert isinstance(note, Note)
    assert note.warning
    assert "10.0.0.5:5700 takes the connection but has said nothing" in note.text
    assert at < 10
    assert seconds[0] == 60
    first = link.gateway.receive(0.0)
    assert first is not None
    assert isinstance(first.packet.message, Hello)


def test_memory_that_ends_in_a_step(
    tmp_path: Path,
    rows: Callable[[str], dict[str, Rows]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The allocation is a real one that no machine can grant."""
    monkeypatch.setattr(gauge, "ANSWER_S", LIMIT_S)
    monkeypatch.setattr(worker, "SplitStep", lambda *_: torch.empty(1 << 50))
    data = written(tmp_path / "a.jsonl", rows("a")["a"])
    text = run_file({"a": 'topology = "u"'}, evaluate__every=0)
    with Stage(tmp_path, text, {"a": data}) as stage:
        server = stage.serve()
        flags = ("--data", str(data), "--name", "a", "--state", str(tmp_path / "state"), "--yes", "--json")
        monkeypatch.setenv("FEDSPLIT_PROFILE", str(stage.profile))
        with pytest.raises(SystemExit) as end:
            command(["join", stage.link(), *flags])
        assert server.child.poll() is None
        kept = load(stage.profile).link
    assert kept is not None, "measured on the way in, and kept"
    assert kept.source.startswith("measured to 127.0.0.1:")
    said = capsys.readouterr().err
    assert end.value.code == 7
    assert "Traceback" not in said
    assert "error: out of memory: an allocation needs 4,503,599,627 MB, this machine has " in said
    assert "try a smaller batch, more micro-batches, or a plan that holds fewer layers here" in said
