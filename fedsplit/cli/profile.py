"""``fedsplit profile``: measure this machine once and keep the result; look at it, or at the curated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.cli import owner
from fedsplit.cli.display import Display, show_profile
from fedsplit.devices.find import find, names, own, own_path
from fedsplit.devices.load import foreign, load, save
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.devices.units import rate, size, speed
from fedsplit.errors import ConfigError, LinkError
from fedsplit.events import Emit, silent
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Bye

app = typer.Typer(help="Measure this device once and keep the result.")

Json = Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")]


@app.callback(invoke_without_command=True)
def profile(
    ctx: typer.Context,
    seconds: Annotated[float, typer.Option(min=0.5, max=300, help="How long to measure.")] = 25.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    name: Annotated[str, typer.Option(help="Name of the profile; empty: this machine's.")] = "",
    link: Annotated[str, typer.Option(help="A server's join line: measure the way to it, too.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: this machine's own.")] = None,
    as_json: Json = False,
    max_memory: owner.Memory = "",
    threads: owner.Threads = "",
    upload_per_day: owner.Upload = "",
    between: owner.Between = "",
    only_on_mains: owner.Mains = None,
    pause_when_busy: owner.Busy = None,
    max_temp: owner.Temperature = "",
) -> None:
    """Measure speed, memory, disk, cores and link of this machine and keep the result for `join` and `plan`."""
    if ctx.invoked_subcommand is not None:
        return
    path = out or own_path(device)
    asked = owner.asked(max_memory, threads, upload_per_day, between, only_on_mains, pause_when_busy, max_temp)
    with Display(mode="silent" if as_json else "auto", title="profile") as emit:
        found = _measured(name, seconds, device, link, path, emit)
    found = msgspec.structs.replace(found, limits=owner.changed(found.limits, asked))
    save(found, path)
    if as_json:
        _json(found)
        return
    show_profile(found)
    Console(highlight=False, soft_wrap=True).print(Text(f"kept in {path}; it is a text file, edit it as you like"))


def _measured(name: str, seconds: float, device: str, link: str, path: Path, emit: Emit) -> DeviceProfile:
    """What this machine can do now; from an earlier profile the link, if it is not measured, and what its owner set."""
    # Measuring needs torch where it is installed; looking does not.
    from fedsplit.probe.measure import measure

    with ExitStack() as stack:
        to = stack.enter_context(reached(link)) if link else None
        found = measure(name, seconds=seconds, device=device, link=to, full=True, emit=emit)
    with suppress(ConfigError):  # no file, or one that is no profile any more
        before = load(path)
        # What cannot be measured is the owner's: it stays, as far as there is that much.
        found = msgspec.structs.replace(
            found, link=found.link or before.link, power_w=before.power_w, limits=before.limits,
            reserve_bytes=min(before.reserve_bytes, found.free_memory_bytes),
        )  # fmt: skip
    return found


@contextmanager
def reached(link: str) -> Iterator[Callable[[float], Link]]:
    """A measurement of the way to a server, which takes about as many seconds as it is given.

    Raises as joining: nobody there, another server's key, a wrong invitation, not now.
    """
    from fedsplit.state.personal import Personal
    from fedsplit_client.dealer import Dealer
    from fedsplit_client.gauge import measured_link
    from fedsplit_client.keys import load_keys
    from fedsplit_client.orderly import OrderlyEnd

    to = JoinLink.parse(link)
    with Dealer(to, load_keys(Personal().keys)) as dealer:
        end = OrderlyEnd(dealer, "", silent)
        yield lambda seconds: measured_link(end, to, seconds)
        with suppress(LinkError):
            end.send(Bye())


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A curated profile or a file; empty: this machine's.")] = "",
    as_json: Json = False,
) -> None:
    """Show this machine's profile, or another one."""
    found = find(name) if name else own()
    if as_json:
        _json(found)
        return
    show_profile(found)
    warning = "" if name else foreign(found)
    if warning:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"warning: {warning}", style="yellow"))


@app.command()
def limit(
    max_memory: owner.Memory = "",
    threads: owner.Threads = "",
    upload_per_day: owner.Upload = "",
    between: owner.Between = "",
    only_on_mains: owner.Mains = None,
    pause_when_busy: owner.Busy = None,
    max_temp: owner.Temperature = "",
) -> None:
    """Say what this machine may be used for, without measuring it again. `none` lifts a limit."""
    path = own_path()
    before = load(path) if path.is_file() else own()  # which says how to measure
    asked = owner.asked(max_memory, threads, upload_per_day, between, only_on_mains, pause_when_busy, max_temp)
    found = msgspec.structs.replace(before, limits=owner.changed(before.limits, asked))
    if found != before:
        save(found, path)
    text = str(found.limits) if found.limits is not None else "none"
    Console(highlight=False, soft_wrap=True).print(Text(f"limits: {text} (kept in {path})"))


@app.command("list")
def shelf() -> None:
    """List the curated profiles that ship with fedsplit."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for header in ("device", "float32", "free", "memory", "uplink", "power"):
        table.add_column(header, justify="left" if header == "device" else "right", no_wrap=True)
    for known in names():
        found = find(known)
        table.add_row(
            Text(known, style="bold"),
            speed(found.flops["float32"]),
            size(found.free_memory_bytes),
            f"{size(found.memory_bandwidth_bps)}/s",
            rate(found.link.up_bps) if found.link else "–",
            f"{found.power_w:g} W" if found.power_w else "–",
        )
    Console(highlight=False).print(table)


def _json(found: DeviceProfile) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
