"""What people see: plain lines where there is no terminal, a live view where there is one, no mess left."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fedsplit.cli import words
from fedsplit.cli.board import Board
from fedsplit.cli.display import AccuracyRow, Display, accuracy_table, ask, show_plan, show_profile
from fedsplit.cli.serve import JOIN, _announce
from fedsplit.cli.simulate import Crew, _by
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.events import (
    Event,
    Joined,
    Left,
    Measured,
    Note,
    Progress,
    RoundClosed,
    RoundStarted,
    StepDone,
    Waiting,
)
from fedsplit.plan.traffic import Moved, RunTraffic
from fedsplit.plan.types import ClientPlan, Cut, Estimate, LayerPlan, Topology
from tests.waiting import LIMIT_S

NAMES = ("desktop", "laptop", "pi")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def console(width: int = 120, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=40, force_terminal=terminal, highlight=False, color_system=None
    )


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.file.getvalue())


def run(rounds: int = 2, steps: int = 3) -> Iterator[Event]:
    """What a server and three devices report of a short run."""
    yield Waiting(on=NAMES, what="devices to join", deadline_s=300)
    yield Joined(client="desktop", topology="local", cut=(0, 6))
    yield Joined(client="laptop", topology="u", cut=(2, 4))
    yield Joined(client="pi", topology="w", cut=(0, 6))
    yield Measured(round=0, phase="before", metrics={"accuracy": 0.094, "worst_client_accuracy": 0.05, "loss": 2.9})
    yield Note(client="pi", text="12 of 800 texts were cut at 128 tokens", warning=True)
    for round in range(rounds):
        yield RoundStarted(round=round, rounds=16, clients=NAMES)
        for step in range(steps):
            for place, name in enumerate(NAMES):
                loss, sent = 2.0 - 0.5 * round - 0.1 * step + 0.01 * place, 1_000_000 * (name != "desktop")
                yield StepDone(
                    client=name, round=round, step=step, steps=steps, loss=loss, seconds=0.4, up_bytes=sent,
                    down_bytes=2 * sent,
                )  # fmt: skip
        yield RoundClosed(round=round, arrived=NAMES, late=(), seconds=3.1, committed=True)
        yield Measured(client="pi", round=round, phase="round", metrics={"accuracy": 0.2})
        yield Measured(
            round=round, phase="round", metrics={"accuracy": 0.3 + 0.1 * round, "worst_client_accuracy": 0.2}
        )


# ---- plain ---------------------------------------------------------------------------------------------------------


def test_one_plain_line_a_round() -> None:
    shown = console(width=40)
    with Display("plain", console=shown) as emit:
        for event in run():
            emit(event)
    assert text_of(shown).splitlines() == [
        "desktop joined, holds the whole model itself",
        "laptop joined, topology u: layers 2 to 3 on the server",
        "pi joined, topology w: layers 0 to 5 on the server",
        "before training  accuracy 0.094 (worst device 0.050)",
        "pi: 12 of 800 texts were cut at 128 tokens",
        "round 1/16  3 of 3 devices  loss 1.810  accuracy 0.300 (worst device 0.200)  6.0 MB up, 12.0 MB down  3.1 s",
        "round 2/16  3 of 3 devices  loss 1.310  accuracy 0.400 (worst device 0.200)  6.0 MB up, 12.0 MB down  3.1 s",
    ]


def test_rounds_that_went_wrong() -> None:
    shown = console()
    with Display("plain", console=shown) as emit:
        emit(RoundStarted(round=0, rounds=2, clients=NAMES))
        emit(RoundClosed(round=0, arrived=("pi",), late=("laptop",), seconds=60, committed=True))
        emit(RoundStarted(round=1, rounds=2, clients=NAMES))
        emit(RoundClosed(round=1, arrived=(), late=NAMES, seconds=0.5, committed=False, reason="0 of 3 updates"))
        emit(Left(client="laptop", reason="went silent"))
    assert text_of(shown).splitlines() == [
        "round 1/2  1 of 2 devices  1:00 min  without laptop",
        "round 2/2  0 of 3 devices  discarded: 0 of 3 updates  0.50 s",
        "laptop left: went silent",
    ]


def test_the_end_of_a_run_is_no_news() -> None:
    shown = console()
    with Display("plain", console=shown) as emit:
        emit(RoundStarted(round=0, rounds=1, clients=("pi",)))
        emit(RoundClosed(round=0, arrived=("pi",), late=(), seconds=1, committed=True))
        emit(Left(client="pi", reason="finished"))
    assert text_of(shown) == "round 1/1  1.0 s\n"


def test_a_device_on_its_own() -> None:
    """A device's process hears of nobody else; its rounds end with its own last step."""
    shown = console()
    with Display("plain", console=shown, clock=Clock()) as emit:
        emit(Progress(client="pi", what="weights", done=0, total=90_868_376))
        emit(Progress(client="pi", what="weights", done=90_868_376, total=90_868_376))
        emit(Measured(client="pi", round=0, phase="before", metrics={"perplexity": 835.2}))
        for round in range(2):
            emit(RoundStarted(client="pi", round=round, rounds=2))
            for step in range(2):
                emit(StepDone(client="pi", round=round, step=step, steps=2, loss=1.5, seconds=0.1, up_bytes=10))
            emit(Measured(client="pi", round=round, phase="round", metrics={"perplexity": 9.5}))
        emit(Measured(client="pi", round=1, phase="after", metrics={"perplexity": 2.9}))
    assert text_of(shown).splitlines() == [
        "weights, 90.9 MB",
        "before training  perplexity 835.2",
        "round 1/2  loss 1.500  perplexity 9.500  20 B up, 0 B down  0.00 s",
        "round 2/2  loss 1.500  perplexity 9.500  20 B up, 0 B down  0.00 s",
        "after training  perplexity 2.900",
    ]


def test_the_parts_of_a_measurement_are_one_bar() -> None:
    board = Board(Clock())
    for done, what in enumerate(("float32 on 1 thread", "float32 on 2 threads", "disk")):
        board.take(Progress(what=what, done=done, total=3, unit="parts"))
        assert [(one.what, one.done, one.total) for one in board.transfers.values()] == [(what, done, 3)]
    board.take(Progress(what="measured", done=3, total=3, unit="parts"))
    assert not board.transfers


def test_a_long_wait_is_told_once_and_a_short_one_not_at_all() -> None:
    clock, shown = Clock(), console()
    display = Display("plain", console=shown, clock=clock)
    display.emit(Waiting(on=("pi", "laptop"), what="updates of round 3", deadline_s=60))
    clock.now += 4
    display.tick()
    assert text_of(shown) == ""
    display.emit(Waiting(on=("pi",), what="updates of round 3", deadline_s=60))
    clock.now += 4
    display.tick()
    display.tick()
    assert text_of(shown) == "waiting for pi: updates of round 3, since 8.0 s, gives up in 52 s\n"
    display.emit(Joined(client="pi", topology="w", cut=(0, 2)))
    clock.now += 60
    display.tick()
    assert text_of(shown).count("waiting") == 1, "pi came"


def test_a_round_line_does_not_wait_for_ever() -> None:
    clock, shown = Clock(), console()
    display = Display("plain", console=shown, clock=clock)
    display.emit(RoundStarted(round=0, rounds=2, clients=("pi",)))
    display.emit(RoundClosed(round=0, arrived=("pi",), late=(), seconds=1, committed=True))
    assert text_of(shown) == "", "its measurement may come"
    clock.now += 6
    display.tick()
    assert text_of(shown) == "round 1/2  1.0 s\n"
    display.emit(Measured(round=0, phase="round", metrics={"accuracy": 0.5}))
    assert text_of(shown).splitlines()[1:] == ["after round 0  accuracy 0.500"]


def test_silent() -> None:
    shown = console()
    with Display("silent", console=shown) as emit:
        for event in run():
            emit(event)
    assert text_of(shown) == ""


def test_markup_in_names_is_text() -> None:
    shown = console()
    with Display("plain", console=shown) as emit:
        emit(Note(text="file [red]a[/red].txt and [/b]"))
    assert text_of(shown) == "file [red]a[/red].txt and [/b]\n"


# ---- live ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_frame_fits_and_tells_the_essential(width: int) -> None:
    clock, shown = Clock(), console(width, terminal=True)
    display = Display("live", title="news", console=shown, clock=clock)
    events = list(run(rounds=3))
    for event in events[: len(events) - 5]:  # in the middle of round 3
        display._board.take(event)
        clock.now += 0.5
    display._board.take(Waiting(client="desktop", on=("laptop",), what="updates of round 3"))
    display._board.take(Waiting(client="laptop", on=("pi",), what="x"))
    clock.now += 7
    shown.print(display._frame)
    text = text_of(shown)
    assert max(map(len, text.splitlines())) <= width
    assert "news round 3/16" in text
    assert "desktop" in text
    assert "0.920" in text, "loss of pi"
    assert "accuracy 0.094 → 0.400" in text
    assert "desktop waits for laptop" in text
    if width >= 80:
        assert "u 2–4" in text
        assert "6.0 MB" in text
        assert "since 7.0 s" in text
    if width >= 120:
        assert "█" in text


def test_a_crowd_fits_the_screen() -> None:
    shown = console(100, terminal=True)
    display = Display("live", console=shown, clock=Clock())
    for index in range(200):
        display._board.take(StepDone(client=f"d{index}", round=0, step=0, steps=2, loss=1.0, seconds=0.1))
        display._board.take(Waiting(client=f"d{index}", on=("d7",), what="updates of round 1"))
    for index in range(200):
        display._board.take(
            StepDone(client=f"d{index}", round=0, step=int(index != 150), steps=2, loss=1.0, seconds=0.1)
        )
        display._board.take(Waiting(client=f"d{index}", on=("d7",), what="updates of round 1"))
    shown.print(display._frame)
    text = text_of(shown)
    assert len(text.splitlines()) <= 40
    assert "d150 " in text, "who holds the round up is shown"
    assert "+ 170 more" in text
    assert "d0, d1, d2 and 197 more wait for d7" in text


def test_threads_and_refreshing_do_not_disturb_each_other() -> None:
    shown = console(100, terminal=True)
    display = Display("live", console=shown)
    with display as emit:

        def work(name: str) -> None:
            for step in range(150):
                emit(StepDone(client=name, round=0, step=step, steps=150, loss=1.0, seconds=0.1, up_bytes=1))
                if step % 50 == 0:
                    emit(Note(client=name, text=f"note {step}"))

        threads = [threading.Thread(target=work, args=(f"d{i}",), daemon=True) for i in range(6)]
        for thread in threads:
            thread.start()
        stop = time.monotonic() + LIMIT_S
        while any(thread.is_alive() for thread in threads):
            assert time.monotonic() < stop, "deadlock"
            display._live.refresh()
            time.sleep(0.001)  # locks are unfair: without a pause this thread takes rich's again before any other wakes
    assert [device.up_bytes for device in display._board.devices.values()] == [150] * 6
    assert text_of(shown).count("note 100") == 6


SCRIPT = """
import sys, time
from fedsplit.cli.display import Display
from fedsplit.events import Note, RoundStarted, StepDone
with Display(title="news") as emit:
    emit(RoundStarted(round=0, rounds=2, clients=("pi",)))
    emit(StepDone(client="pi", round=0, step=0, steps=1, loss=1.0, seconds=0.1))
    emit(Note(text="ready"))
    if "wait" in sys.argv:
        time.sleep(60)
"""


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**kept, "PYTHONPATH": paths, "TERM": "xterm-256color", **extra}


def test_a_pipe_gets_no_escape_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, timeout=240, env=environment(), check=True
    )
    assert done.stdout == b"ready\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals like these")
@pytest.mark.parametrize(
    ("extra", "live"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=["colours", "NO_COLOR", "dumb"],
)
def test_on_a_terminal(extra: dict[str, str], live: bool) -> None:
    status, output = on_terminal([sys.executable, "-c", SCRIPT], environment(**extra))
    assert status == 0
    assert b"ready" in output
    assert (b"\x1b[" in output) == live
    if live:
        assert b"news" in output
        assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l"), "the cursor is back"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals like these")
def test_interrupted_on_a_terminal() -> None:
    status, output = on_terminal([sys.executable, "-c", SCRIPT, "wait"], environment(), interrupt_after=b"ready")
    assert status != 0
    assert b"KeyboardInterrupt" in output
    assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l"), "the cursor is back"


def on_terminal(
    command: list[str], env: dict[str, str], *, interrupt_after: bytes = b"", answers: bytes = b""
) -> tuple[int, bytes]:
    """(status, output) of ``command`` on a pseudo-terminal; Ctrl-C once ``interrupt_after`` was seen."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    ) as child:
        os.close(theirs)
        os.write(ours, answers)
        output = b""
        while True:
            try:
                got = os.read(ours, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not got:
                break
            output += got
            if interrupt_after and interrupt_after in output:
                child.send_signal(2)
                interrupt_after = b""
        status = child.wait(LIMIT_S)
    os.close(ours)
    return status, output


def test_a_measurement_after_its_rounds_line_says_which_round() -> None:
    shown = console()
    with Display(console=shown, clock=Clock()) as emit:
        emit(RoundStarted(round=2, rounds=3, clients=("pi",)))
        emit(RoundClosed(round=2, arrived=("pi",), late=(), seconds=1.0, committed=True))
        emit(Note(text="something else"))
        emit(Measured(round=3, phase="round", metrics={"accuracy": 0.5}))
    assert "after round 3  accuracy 0.500" in text_of(shown)


def test_simulated_clients_are_named_and_need_no_line_to_type() -> None:
    note = _by("pi", Note(client="pi", text="3 rows were cut", warning=True))
    assert note == Note(text="pi: 3 rows were cut", warning=True)
    assert not Crew._concerns("", Note(text=f"listening; type: {JOIN} 'fedsplit://x' --data my.jsonl"))
    assert Crew._concerns("", Note(text="something else"))


def test_a_server_that_is_kept_open_says_how_to_ask_it(tmp_path: Path) -> None:
    told: list[Event] = []
    for keep_open in (False, True):
        _announce("fedsplit://x", tmp_path / "link", told.append, keep_open=keep_open)
    texts = [event.text for event in told if isinstance(event, Note)]
    assert "fedsplit join 'fedsplit://x'" in texts[0]
    assert "fedsplit predict 'fedsplit://x' \"text\"" in texts[1]


# ---- cards ---------------------------------------------------------------------------------------------------------


PLAN = ClientPlan(
    client="laptop",
    topology=Topology.U,
    cut=Cut(2, 4),
    layers=tuple(LayerPlan(layer=i, place="server" if 2 <= i < 4 else "client", trains=i > 0) for i in range(6)),
    batch=16,
    micro_batches=2,
    estimate=Estimate(
        memory_bytes=310_000_000, disk_bytes=90_000_000, step_s=2.5, up_bytes=1_500_000, down_bytes=750_000
    ),
    binding="memory",
    exposure="The operator sees activations after 2 of 6 layers.",
    reasons=("local needs 468 MB",),
)


def test_plan_says_what_it_must() -> None:
    shown = console(90)
    whole = RunTraffic(
        steps=48, measurements=2, training=Moved(72_000_000, 36_000_000), measuring=Moved(3_000_000, 3_000_000),
        factors=Moved(1_600_000, 1_900_000), download_bytes=90_000_000, assumed_tokens=128,
    )  # fmt: skip
    show_plan(PLAN, whole, shown)
    text = text_of(shown)
    for part in (
        "Plan for laptop", "embedding □■▓▓■■ head", "LoRA in 1–5 of 6 · r 8", "on this device 3 of 4 layers",
        "activations after 2 of 6 layers", "72.0 MB up, 36.0 MB down: 48 steps", "310 MB",
        "at most about 76.6 MB up, 131 MB down", "0 B up, 90.0 MB down: base model, once",
        "3.0 MB up, 3.0 MB down: 2 measurements", "fills 128 tokens", "2:00 min for 48 steps",
        "limited by memory", "local needs 468 MB", "labels stay here",
    ):  # fmt: skip
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 90
    show_plan(PLAN, None, shown)
    assert "2.5 s for one step" in text_of(shown)


def test_profile_in_units_people_know() -> None:
    shown = console(90)
    link = Link(up_bps=2.1e6, down_bps=6e6, latency_s=0.0042)
    show_profile(
        DeviceProfile(
            name="pi", arch="aarch64", cores=4, threads=3, flops={"float32": 11.2e9, "bfloat16": 2e12},
            memory_bandwidth_bps=4.1e9, memory_bytes=1_900_000_000, free_memory_bytes=1_400_000_000, link=link,
        ),
        shown,
    )  # fmt: skip
    text = text_of(shown)
    for part in ("pi", "4 cores, 3 threads", "11.2 GFLOP/s in float32", "2.0 TFLOP/s in bfloat16", "1.4 GB free of 1.9",
                 "4.1 GB/s", "2.1 MB/s up, 6.0 MB/s down, 4.2 ms"):  # fmt: skip
        assert part in text, part


def test_accuracy_table() -> None:
    shown = console(90)
    accuracy_table([AccuracyRow("pi", 0.07, 0.31, 0.634), AccuracyRow("pc", None, 0.4, None)], console=shown)
    lines = text_of(shown).splitlines()
    assert [line.split()[:4] for line in lines if line.split()[:1] in (["pi"], ["pc"])] == [
        ["pi", "0.070", "0.310", "0.634"],
        ["pc", "–", "0.400", "–"],
    ]
    assert "alone" in text_of(shown)


def test_accuracy_table_of_one_device() -> None:
    shown = console(90)
    accuracy_table([AccuracyRow("pi", 835.0, None, 2.9)], "perplexity", shown)
    lines = [line.split() for line in text_of(shown).splitlines() if line.strip()]
    assert lines == [["perplexity"], ["device", "before", "after"], ["pi", "835.0", "2.900"]]
    accuracy_table([AccuracyRow("pi", 1.0, None, float("nan"))], "a metric of their own", shown)


def test_ask_without_a_terminal_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console()
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert ask("Train?", console=shown) is False
    assert "add --yes" in text_of(shown)
    assert ask("Train?", yes=True, console=shown) is True


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals like these")
@pytest.mark.parametrize(
    ("typed", "expected"), [(b"y\n", True), (b"NO\n", False), (b"what\n\nYes\n", True), (b"\x04", False)]
)
def test_ask_on_a_terminal(typed: bytes, expected: bool) -> None:
    code = "from fedsplit.cli.display import ask; print('answer', ask('Train?'))"
    status, output = on_terminal([sys.executable, "-c", code], environment(), answers=typed)
    assert status == 0
    assert f"answer {expected}".encode() in output


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_600, "1.0 MB"), (12_345_678, "12.3 MB"), (310e6, "310 MB")],
)
def test_size(nbytes: float, expected: str) -> None:
    assert words.size(nbytes) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.004, "0.00 s"), (0.42, "0.42 s"), (9.99, "10.0 s"), (12.4, "12 s"), (59.7, "1:00 min"), (3720, "1 h 02")],
)
def test_duration(seconds: float, expected: str) -> None:
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.094, "0.094"), (2.3456, "2.346"), (12.345, "12.35"), (835.21, "835.2"), (1e7, "1.00e+07"),
     (0.00012, "1.20e-04"), (0.0, "0.000"), (-3.5, "-3.500"), (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_number(value: float | None, expected: str) -> None:
    assert words.number(value) == expected


def test_names_sort_as_people_count() -> None:
    assert sorted(["e10", "e2", "a", "e"], key=words.natural) == ["a", "e", "e2", "e10"]


def test_time_left_of_a_resumed_run() -> None:
    clock = Clock()
    board = Board(clock)
    board.take(RoundStarted(round=10, rounds=14, clients=("pi",)))
    assert board.left_s is None
    clock.now += 5
    board.take(RoundClosed(round=10, arrived=("pi",), late=(), seconds=5, committed=True))
    assert board.left_s == pytest.approx(15)
    clock.now += 2
    assert board.left_s == pytest.approx(13)


def test_a_repeated_step_counts_once() -> None:
    """Server and device may both report a step when they are shown together."""
    board = Board(Clock())
    board.take(RoundStarted(round=0, rounds=1, clients=("pi", "pc")))
    for loss in (None, 1.0):
        board.take(StepDone(client="pi", round=0, step=0, steps=4, loss=loss, seconds=0.1, up_bytes=5 if loss else 0))
    device = board.devices["pi"]
    assert (device.step, device.loss, device.up_bytes) == (1, 1.0, 5)


def test_nothing_here_needs_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'peft', 'bitsandbytes']))\n"
        "import fedsplit.cli.display, fedsplit.state.personal, fedsplit.state.rundir, fedsplit.exchange.metrics"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=240)
