"""``fedsplit serve``: host a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fedsplit.cli.after_run import how_to_export
from fedsplit.cli.chosen_method import MethodName, Options, with_method
from fedsplit.cli.interrupts import if_interrupted, kept_in
from fedsplit.cli.output import view
from fedsplit.cli.sizes import parse_size
from fedsplit.config.load import load
from fedsplit.config.run import RunFile
from fedsplit.devices.find import find
from fedsplit.devices.load import foreign
from fedsplit.events import Emit, Finished, Note

JOIN = "fedsplit join"
"""``simulate`` looks for it: its clients need no line to type."""


def serve(
    run_file: Annotated[Path, typer.Argument(help="The run file; make one with: fedsplit new")],
    device: Annotated[str, typer.Option(help="Where the body runs: cpu, cuda, cuda:1.")] = "cpu",
    gpu_memory: Annotated[str, typer.Option(help="Refuse before loading when more is needed, e.g. 20GB.")] = "",
    profile: Annotated[str, typer.Option(help="A device profile (name or file) instead of this machine's.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    keep_open: Annotated[
        bool, typer.Option("--keep-open", help="Train nothing; answer fedsplit predict until Ctrl-C.")
    ] = False,
    host: Annotated[str, typer.Option(help="Listen on this address instead of server.host.")] = "",
    port: Annotated[int, typer.Option(help="Listen on this port instead of server.port; 0: any free one.")] = -1,
    link_file: Annotated[Path | None, typer.Option(help="Also write the join line to this file.")] = None,
    method: MethodName = "",
    options: Options = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an event instead of the view.")] = False,
) -> None:
    """Host a run; prints the line that a device must type. Ctrl-C saves; the same command with --resume goes on."""
    from fedsplit_server import serve as server

    run = with_method(with_address(load(run_file), host, port), method, options)
    memory = parse_size(gpu_memory, "--gpu-memory") if gpu_memory else 0
    own = find(profile) if profile else None
    folder = server.run_folder(run)
    said = "stopped as you asked" if keep_open else ""
    with if_interrupted(lambda: said or kept_in(folder)), view(f"serving {run.run.name}", json) as emit:
        if own and not json and (warning := foreign(own)):
            emit(Note(text=warning, warning=True))
        served = server.serve(
            run,
            device=device,
            memory_bytes=memory,
            profile=own,
            resume=resume or keep_open,
            keep_open=keep_open,
            emit=emit,
            ready=lambda link: _announce(link, link_file, emit, keep_open=keep_open),
        )
        emit(Finished(round=served.rounds, reason=served.reason, after=served.metrics, digest=served.digest))
    if not json:
        typer.echo(f"done: {served.reason}. {how_to_export(run, served.folder)}")


def with_address(run: RunFile, host: str, port: int) -> RunFile:
    """The run with another place to listen on, where flags say so."""
    changes = ({"host": host} if host else {}) | ({"port": port} if port >= 0 else {})
    return msgspec.structs.replace(run, server=msgspec.structs.replace(run.server, **changes)) if changes else run


def _announce(link: str, link_file: Path | None, emit: Emit, *, keep_open: bool) -> None:
    if link_file is not None:
        aside = link_file.with_suffix(".part")
        aside.write_text(link, "utf-8")
        aside.replace(link_file)
    if keep_open:
        emit(Note(text=f"listening; ask the model from any device:  fedsplit predict '{link}' \"text\""))
        return
    emit(Note(text=f"listening; on each device type:  {JOIN} '{link}' --data my.jsonl"))
