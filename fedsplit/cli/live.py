"""The live view: one frame of a run, drawn from the board. A wide terminal shows more columns than a small one."""

from __future__ import annotations

import threading

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsplit.cli import words
from fedsplit.cli.board import Board, Device, Transfer

ACCENT = "cyan"
QUIET = "dim"
UP, DOWN = "↑", "↓"
LONG_S = 5.0
"""A longer wait is worth a colour."""
NARROW = 56
MIN_ROWS = 3
AROUND_ROWS = 9
"""Lines that a frame needs besides the devices' rows."""


class Frame:
    """A renderable. It reads the board under ``lock``, because the terminal is refreshed from a thread of its own."""

    def __init__(self, board: Board, title: str, lock: threading.RLock) -> None:
        self._board, self._title, self._lock = board, title, lock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> list[RenderableType]:
        with self._lock:
            return [self._built(options.max_width, console.height)]

    def _built(self, width: int, height: int) -> Group:
        parts: list[RenderableType] = [Text(), self._header(width)]
        if self._board.devices:
            parts += [Text(), self._devices(width, max(MIN_ROWS, height - AROUND_ROWS))]
        if self._board.transfers:
            parts += [Text(), self._transfers(width)]
        parts += [line for line in (self._metric(width), *self._waits()) if line is not None]
        return Group(*parts)

    def _header(self, width: int) -> Table:
        board = self._board
        row = Table.grid(padding=(0, 1), expand=False)
        done, total = board.rounds_done, board.rounds
        title = Text(f" {self._title}", style=f"bold {ACCENT}", no_wrap=True, overflow="ellipsis")
        clock = Text(words.duration(board.elapsed_s), style=QUIET, no_wrap=True)
        if not total:
            row.add_row(title, clock)
            return row
        if board.left_s is not None and done < total:
            clock.append(f", about {words.duration(board.left_s)} left")
        now = min(max(board.round, done - 1) + 1, total)
        bar = ProgressBar(
            total=total,
            completed=done + self._within(),
            width=max(8, min(40, width - 62)),
            complete_style=ACCENT,
            finished_style="green",
        )
        shown: list[RenderableType] = [title, Text(f"round {now}/{total}", style="bold", no_wrap=True), bar, clock]
        row.add_row(*(shown if width >= NARROW else shown[:2]))
        return row

    def _within(self) -> float:
        """How much of the open round is done: the slowest device decides."""
        board = self._board
        if board.rounds_done > board.round:
            return 0.0
        taking = [d for d in board.devices.values() if d.round == board.round and d.steps and not d.gone]
        return min((d.step / d.steps for d in taking), default=0.0)

    def _devices(self, width: int, most: int) -> Table:
        wide, medium, roomy = width >= 100, width >= 78, width >= NARROW
        table = Table(box=None, padding=(0, 1), header_style=QUIET, expand=False)
        table.add_column("device", no_wrap=True, overflow="ellipsis", max_width=18, min_width=6)
        if medium:
            table.add_column("plan", no_wrap=True, style=QUIET)
        table.add_column("steps", no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("loss", justify="right", no_wrap=True)
        if wide:
            table.add_column("", no_wrap=True, style=ACCENT, min_width=16)
        if medium:
            table.add_column("a step", justify="right", no_wrap=True, style=QUIET)
        if roomy:
            table.add_column(UP, justify="right", no_wrap=True)
            table.add_column(DOWN, justify="right", no_wrap=True)
        shown = self._most_telling(most)
        for device in shown:
            table.add_row(*self._row(device, wide, medium, roomy))
        hidden = len(self._board.devices) - len(shown)
        if hidden:
            table.add_row(Text(f"+ {hidden} more", style=QUIET))
        return table

    def _most_telling(self, most: int) -> list[Device]:
        """All devices by name, or those that hold the round up."""
        devices = sorted(self._board.devices.values(), key=lambda device: words.natural(device.name))
        if len(devices) <= most:
            return devices
        behind = sorted(
            devices, key=lambda d: (bool(d.gone), d.step / d.steps if d.steps else 0.0, words.natural(d.name))
        )
        return sorted(behind[: most - 1], key=lambda device: words.natural(device.name))

    def _row(self, device: Device, wide: bool, medium: bool, roomy: bool) -> list[RenderableType]:
        if device.gone:
            state: RenderableType = Text(device.gone, style=_mood(device), no_wrap=True, overflow="ellipsis")
            count = Text()
        else:
            state = ProgressBar(
                total=max(1, device.steps),
                completed=device.step,
                width=18 if wide else 12,
                complete_style=ACCENT,
                finished_style="green",
            )
            count = Text(f"{device.step}/{device.steps}" if device.steps else "", style=QUIET)
        cells: list[RenderableType] = [Text(device.name, style="bold" if not device.gone else QUIET)]
        if medium:
            cells.append(words.where(device.topology, device.cut))
        cells += [state, count, words.number(device.loss)]
        if wide:
            cells.append(words.spark(list(device.losses), 16))
        if medium:
            cells.append(words.duration(device.step_s) if device.step_s is not None else "–")
        if roomy:
            cells += [words.size(device.up_bytes), words.size(device.down_bytes)]
        return cells

    def _transfers(self, width: int) -> Table:
        table = Table.grid(padding=(0, 1))
        for transfer in self._board.transfers.values():
            table.add_row(*_transfer(transfer, self._board, width))
        return table

    def _metric(self, width: int) -> Text | None:
        for name, values in self._board.history.items():
            line = Text(f"\n {name} ", style=QUIET)
            line.append(" → ".join(words.number(v) for v in (values[0], values[-1])[: len(values)]), style="bold green")
            line.append("  " + words.spark(values, max(8, width - 60)), style="green")
            return line
        return None

    def _waits(self) -> list[Text]:
        """Who waits for whom since when; those who wait for the same share a line."""
        groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
        for waiter, wait in sorted(self._board.waits.items(), key=lambda item: words.natural(item[0])):
            groups.setdefault((wait.on, wait.what), []).append(waiter)
        return [self._waiting(waiters) for waiters in groups.values()]

    def _waiting(self, waiters: list[str]) -> Text:
        wait = min((self._board.waits[waiter] for waiter in waiters), key=lambda wait: wait.since_s)
        waited = self._board.waited_s(wait)
        left = None if wait.deadline_s is None else wait.deadline_s - waited
        text = words.waits([name for name in waiters if name], wait.on, wait.what, waited, left)
        return Text(f" {text}", style="yellow" if waited > LONG_S else QUIET, no_wrap=True, overflow="ellipsis")


def _mood(device: Device) -> str:
    return "green" if device.gone == words.FINISHED else "yellow"


def _transfer(transfer: Transfer, board: Board, width: int) -> list[RenderableType]:
    who = f" {transfer.client}: " if transfer.client and not board.one_device else " "
    amount = f"{transfer.done}/{transfer.total} {transfer.unit}"
    if transfer.unit == "bytes":
        amount = f"{words.size(transfer.done)} of {words.size(transfer.total)}"
    bar = ProgressBar(
        total=transfer.total, completed=transfer.done, width=max(8, min(30, width - 50)), complete_style=ACCENT
    )
    return [Text(who + transfer.what, no_wrap=True), bar, Text(amount, style=QUIET, no_wrap=True)]
