"""Real processes under an owner's limits: windows open and close, a day's bytes are used up, and the run ends with the
bits of one without limits; and one that leaves for good, which nobody waits for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS
from fedsplit.devices.limits import Limits
from fedsplit.events import Event, Finished, Left, Note, RoundClosed, RoundStarted, from_json
from tests.run.conftest import Rows, run_file
from tests.run.party import Party
from tests.run.processes import ROOT, Stage

CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "w"', "c": 'topology = "local"'}
SMALL: dict[str, object] = {"train__rounds": 2, "train__steps": 2, "evaluate__every": 0, "evaluate__clients": False}
MakeRows = Callable[[str], dict[str, Rows]]


class Limited:
    """``limited_client.py`` as a process."""

    def __init__(self, run: Stage, name: str, limits: Limits) -> None:
        import msgspec

        paths = os.pathsep.join(str(ROOT / part) for part in (".", "server", "client"))
        words = [run.link(), run.data[name], name, run.folder / "devices" / name, run.profile]
        self.out = run.folder / f"{name}.events"
        self.wrong = run.folder / f"{name}.err"
        with self.out.open("w") as out, self.wrong.open("w") as wrong:
            self.child = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("limited_client.py")), *map(str, words),
                 msgspec.json.encode(limits).decode()],
                stdout=out, stderr=wrong, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def end(self) -> list[Event]:
        try:
            code = self.child.wait(120)
        finally:
            self.child.kill()
            self.child.wait()
        assert code == 0, self.wrong.read_text()
        return [event for line in self.out.read_text().splitlines() if (event := from_json(line)) is not None]


def test_the_result_is_that_of_a_run_without_limits(
    stage: Callable[[str], Stage], rows: MakeRows, tmp_path: Path
) -> None:
    two = {name: CLIENTS[name] for name in "ac"}
    text = run_file(two, **SMALL)
    (tmp_path / "reference").mkdir()
    with Party(text, {name: rows("abc")[name] for name in two}, tmp_path / "reference") as party:
        reference = party.start().finish()
    one_round = party.ends["a"].up_bytes / 2
    run = stage(text)
    server = run.serve()
    # 'a' may send one round a day and a bit; the window of 'c' opens late and closes in the second round.
    limited = {
        "a": Limited(run, "a", Limits(upload_per_day_bytes=round(1.6 * one_round))),
        "c": Limited(run, "c", Limits(between="06:00-23:00")),
    }
    events = {name: one.end() for name, one in limited.items()}
    server.end()
    assert server.finished.digest == reference.digest
    left = {name: [e for e in server.events if isinstance(e, Left) and e.client == name] for name in limited}
    assert any("away, back within" in event.reason for event in left["a"]), server.events
    said = [event.text for event in events["a"] if isinstance(event, Note)]
    assert any("a round sends" in text and "until 2026-01-" in text for text in said), said
    said = [event.text for event in events["c"] if isinstance(event, Note)]
    assert [text for text in said if "outside of the hours" in text], said
    assert any("away, back within" in event.reason for event in left["c"]), said
    for name in limited:
        [end] = [event for event in events[name] if isinstance(event, Finished)]
        assert end.reason == "all rounds done"
    closed = [event for event in server.events if isinstance(event, RoundClosed)]
    assert [event.round for event in closed if event.committed] == [0, 1]
    assert all(event.committed for event in closed), "a device that is away fails no round"


@pytest.mark.soak
def test_who_leaves_is_not_waited_for_where_there_is_a_quorum(stage: Callable[[str], Stage]) -> None:
    text = run_file(CLIENTS, **{**SMALL, "train__rounds": 6, "rounds__quorum": 2, "rounds__deadline_s": 600.0})
    run = stage(text)
    server = run.serve()
    clients = {name: run.join(name, "--no-measure-link") for name in CLIENTS}
    clients["b"].until(RoundStarted, round=1)
    said = CliRunner().invoke(make_app(VERBS), ["leave", "--state", str(run.folder / "devices" / "b")])
    assert said.exit_code == 0, said.output
    clients["b"].end(expected=0)
    for name in "ac":
        clients[name].end()
    server.end()
    left = [event.reason for event in server.events if isinstance(event, Left) and event.client == "b"]
    assert left[-1] == "left", server.events
    closed = [event for event in server.events if isinstance(event, RoundClosed)]
    assert all(event.committed for event in closed)
    assert closed[-1].arrived == ("a", "c")
    again = CliRunner().invoke(make_app(VERBS), ["leave", "--state", str(run.folder / "devices" / "b")])
    assert again.exit_code == 2, again.output
    assert list((run.folder / "devices" / "b" / "runs").glob("*/info.json")), "its state is kept"
