"""``fedsplit profile``: measure this machine once and keep the result; look at it, or at the curated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.cli.display import Display, show_profile
from fedsplit.devices.find import find, names, own, own_path
from fedsplit.devices.load import foreign, save
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.units import rate, size, speed

app = typer.Typer(help="Measure this device once and keep the result.")

Json = Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")]


@app.callback(invoke_without_command=True)
def profile(
    ctx: typer.Context,
    seconds: Annotated[float, typer.Option(min=0.5, max=300, help="How long to measure.")] = 5.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    name: Annotated[str, typer.Option(help="Name of the profile; empty: this machine's.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: this machine's own.")] = None,
    as_json: Json = False,
) -> None:
    """Measure speed, memory, disk and cores of this machine and keep the result for `join` and `plan`."""
    if ctx.invoked_subcommand is not None:
        return
    # Measuring needs torch where it is installed; looking does not.
    from fedsplit.probe.measure import measure

    with Display(mode="silent" if as_json else "auto", title="profile") as emit:
        found = measure(name, seconds=seconds, device=device, emit=emit)
    path = save(found, out or own_path())
    if as_json:
        _json(found)
        return
    show_profile(found)
    Console(highlight=False, soft_wrap=True).print(Text(f"kept in {path}; it is a text file, edit it as you like"))


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
