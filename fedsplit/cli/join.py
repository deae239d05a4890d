"""``fedsplit join``: take part in a run with data that stays here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedsplit.cli import owner
from fedsplit.cli.joining import take_part
from fedsplit.cli.lean import OWN, go_lean
from fedsplit.devices.find import find, own_path
from fedsplit.devices.limits import Limits
from fedsplit.devices.load import foreign, load
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, Problem
from fedsplit.events import Note

Computes = Annotated[str, typer.Option(help="What computes: torch, or edge (onnxruntime, on graphs from the server).")]
Tag = Annotated[
    str, typer.Option(help="What your data is, for methods with groups (deu_Latn, say); the operator sees it.")
]


def join(
    context: typer.Context,
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
    from fedsplit_client import fresh
    from fedsplit_client.wish import Wish, pack

    _check_out(out)
    asked = owner.asked(max_memory, threads, upload_per_day, between, only_on_mains, pause_when_busy, max_temp)
    given = find(profile) if profile else None
    wish = Wish(
        link=link,
        data=str(data),
        name=name,
        topology=topology,
        model=model,
        profile=given,
        device=device,
        backend=backend,
        tag=tag,
        state=str(state or ""),
        learning=learning,
        measure_link=measure_link,
        limits=_limits(given, asked),
    )
    flags = [flag for flag, on in (("json", json), ("yes", yes), ("debug", _debug(context))) if on]
    hand_over = (lambda wish: go_lean(pack(wish), out, flags)) if context.obj == OWN and fresh.possible() else None
    said = () if json or given is None else _warning(given)
    take_part(wish, out=out, yes=yes, json=json, said=said, hand_over=hand_over)


def _debug(context: typer.Context) -> bool:
    return bool(context.find_root().params.get("debug"))


def _warning(given: DeviceProfile) -> tuple[Note, ...]:
    """Of a profile from another kind of machine that the owner names (``simulate``, which reads events, gives such
    profiles on purpose)."""
    warning = foreign(given)
    return (Note(text=warning, warning=True),) if warning else ()


def _limits(given: DeviceProfile | None, asked: dict[str, Any]) -> Limits | None:
    """Those of the profile with what was asked for this run; None where the profile says all there is to say."""
    if not asked:
        return None
    path = own_path()
    before = given or (load(path) if path.is_file() else None)
    return owner.changed(before.limits if before is not None else None, asked) or Limits()


def _check_out(out: Path | None) -> None:
    """Now: after hours of training is too late to hear that there is no such folder."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        found = f"{out}, a folder" if out.is_dir() else f"{out}, in a folder that is not there"
        raise ConfigError([Problem("--out", found, "a file in a folder that exists")])
