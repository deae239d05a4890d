"""``fedsplit join``: take part in a run with data that stays here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsplit.cli import owner
from fedsplit.cli.display import AccuracyRow, accuracy_table, ask, show_plan
from fedsplit.cli.interrupts import if_interrupted
from fedsplit.cli.output import view
from fedsplit.devices.find import find, own_path
from fedsplit.devices.limits import Limits
from fedsplit.devices.load import foreign, load
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, Problem
from fedsplit.events import Emit, Event, Finished, Measured, Note, RoundStarted, silent
from fedsplit.plan.traffic import run_traffic

if TYPE_CHECKING:
    from fedsplit_client.join import Joined
    from fedsplit_client.session import Offer

Computes = Annotated[str, typer.Option(help="What computes: torch, or edge (onnxruntime, on graphs from the server).")]
Tag = Annotated[
    str, typer.Option(help="What your data is, for methods with groups (deu_Latn, say); the operator sees it.")
]


def join(
    link: Annotated[str, typer.Argument(help="The line that the server printed: 'fedsplit://HOST:PORT/?key=…'")],
    data: Annotated[Path, typer.Option(help="Your rows: JSONL, CSV, text, an image folder. They stay here.")],
    name: Annotated[str, typer.Option(help="Your name in the run; by default this machine's.")] = "",
    topology: Annotated[str, typer.Option(help="Insist on local, u, v or w instead of what is planned.")] = "",
    model: Annotated[str, typer.Option(help="The base model's folder, when it is here already.")] = "",
    profile: Annotated[str, typer.Option(help="A device profile (name or file) instead of this machine's.")] = "",
    device: Annotated[str, typer.Option(help="Where your layers run: cpu, cuda, cuda:1.")] = "cpu",
    backend: Computes = "",
    tag: Tag = "",
    state: Annotated[Path | None, typer.Option(help="Folder for keys and state; by default the platform's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep the final factors in this file.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree without being asked (for services).")] = False,
    learning: Annotated[
        bool, typer.Option("--learn/--no-learn", help="Correct this machine's kept profile by what the run showed.")
    ] = True,
    measure_link: Annotated[
        bool, typer.Option(help="Measure the way to the server first, unless --profile says it.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an event instead of the view.")] = False,
    max_memory: owner.Memory = "",
    threads: owner.Threads = "",
    upload_per_day: owner.Upload = "",
    between: owner.Between = "",
    only_on_mains: owner.Mains = None,
    pause_when_busy: owner.Busy = None,
    max_temp: owner.Temperature = "",
) -> None:
    """Take part in a run. Shows what is trained, what the operator can learn and what it costs, then asks."""
    from fedsplit_client import join as client

    _check_out(out)
    asked = owner.asked(max_memory, threads, upload_per_day, between, only_on_mains, pause_when_busy, max_temp)
    with ExitStack() as stack:
        stage = Stage(stack, yes=yes, json=json)
        stack.enter_context(if_interrupted(lambda: stage.kept))
        stack.enter_context(_leaving(json))
        given = _given(profile, silent if json else stage.emit) if profile else None
        joined = client.join(
            link,
            data,
            name=name,
            topology=topology,
            model=model,
            profile=given,
            device=device,
            backend=backend,
            tag=tag,
            state=state,
            agree=stage.agree,
            emit=stage.emit,
            learning=learning,
            measure_link=measure_link,
            limits=_limits(given, asked),
        )
        stage.emit(_finished(joined))
    if out is not None:
        client.save(joined, out)
    if not json:
        _report(joined)


def _given(name: str, emit: Emit) -> DeviceProfile:
    """The profile that the owner names instead of this machine's; one of another kind of machine is warned of
    (``simulate``, which reads events, gives such profiles on purpose)."""
    found = find(name)
    if warning := foreign(found):
        emit(Note(text=warning, warning=True))
    return found


@contextmanager
def _leaving(json: bool) -> Iterator[None]:
    """Whoever said `fedsplit leave` sees that it was done, and a service sees no failure."""
    from fedsplit_client.owner import Left

    try:
        yield
    except Left as left:
        typer.echo(str(left), err=json)
        raise typer.Exit(0) from None


def _limits(given: DeviceProfile | None, asked: dict[str, Any]) -> Limits | None:
    """Those of the profile with what was asked for this run; None where the profile says all there is to say."""
    if not asked:
        return None
    path = own_path()
    before = given or (load(path) if path.is_file() else None)
    return owner.changed(before.limits if before is not None else None, asked) or Limits()


class Stage:
    """The question first and the view after it: a live view and a prompt cannot share a terminal."""

    def __init__(self, stack: ExitStack, *, yes: bool, json: bool) -> None:
        self._stack, self._yes, self._json = stack, yes, json
        self._emit = stack.enter_context(view("joining", json, live=False))
        self.kept = "nothing was joined, and nothing of your data was sent"
        """What is true when it is interrupted now."""

    def emit(self, event: Event) -> None:
        if isinstance(event, RoundStarted | Measured):
            self.kept = "finished rounds are saved; the same command goes on from there"
        self._emit(event)

    def agree(self, offer: Offer, path: str) -> bool:
        """Show what is asked of this device, then ask its owner."""
        if not self._json:
            show_plan(offer.plan, run_traffic(offer.plan, offer.run, offer.known))
        if not ask(f"Train on {path} with this plan?", yes=self._yes):
            return False
        self.kept = "no round was trained here yet; what was fetched is kept, and the same command goes on from there"
        self._emit = self._stack.enter_context(view(f"{offer.plan.client} in {offer.run.run.name}", self._json))
        return True


def _check_out(out: Path | None) -> None:
    """Now: after hours of training is too late to hear that there is no such folder."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        found = f"{out}, a folder" if out.is_dir() else f"{out}, in a folder that is not there"
        raise ConfigError([Problem("--out", found, "a file in a folder that exists")])


def _finished(joined: Joined) -> Finished:
    result = joined.result
    return Finished(
        client=joined.plan.client,
        round=result.round,
        reason=result.reason,
        before=result.before,
        after=result.after,
        up_bytes=joined.up_bytes,
        down_bytes=joined.down_bytes,
    )


def _report(joined: Joined) -> None:
    result = joined.result
    shared = sorted(result.before.keys() & result.after.keys() - {"tokens"})
    for metric in shared:
        row = AccuracyRow(joined.plan.client, result.before[metric], None, result.after[metric])
        accuracy_table([row], metric)
    typer.echo(
        f"done: {result.reason}. Sent {joined.up_bytes / 1e6:,.1f} MB, received {joined.down_bytes / 1e6:,.1f} MB."
    )
    typer.echo(f"The factors you hold are kept in {joined.folder}")
