"""``fedsplit plan run.toml``: who would hold and train what, what it costs, and why. No torch, no weights."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fedsplit import assets
from fedsplit.cli.chosen_method import MethodName, Options, with_method
from fedsplit.cli.gathered import Gathered
from fedsplit.cli.plan_picture import picture
from fedsplit.cli.plan_plot import check_plot, write_plot
from fedsplit.cli.plan_table import print_explanation, print_plan
from fedsplit.cli.report import report
from fedsplit.config.load import load
from fedsplit.config.run import RunFile
from fedsplit.devices.change import what_if
from fedsplit.devices.find import find, own
from fedsplit.devices.fleet import load_fleet
from fedsplit.devices.load import foreign
from fedsplit.devices.profile import TORCH_BYTES, DeviceProfile
from fedsplit.devices.units import size
from fedsplit.errors import ConfigError, PlanError, Problem
from fedsplit.method.of_run import method_of
from fedsplit.method.record import Method, Phases, every
from fedsplit.method.settled import settled
from fedsplit.method.travel import travels
from fedsplit.plan.card import ModelCard, card, check_rank
from fedsplit.plan.codec import with_codecs
from fedsplit.plan.depth import check_kinds
from fedsplit.plan.fleet import balanced
from fedsplit.plan.question import Question, questions
from fedsplit.plan.rooms import in_rooms
from fedsplit.plan.solve import answer, planned, sealed
from fedsplit.plan.types import Plan


def plan(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run file; or: report RUN.")],
    run_folder: Annotated[Path | None, typer.Argument(metavar="RUN", hidden=True)] = None,
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet file, or home, campus, hospital, thousand.")] = "",
    server: Annotated[str, typer.Option("--server", help="Profile of the server's machine.")] = "",
    explain: Annotated[str, typer.Option("--explain", metavar="CLIENT", help="Show a client's arithmetic.")] = "",
    change: Annotated[
        list[str] | None, typer.Option("--what-if", metavar="CLIENT.KEY=VALUE", help="E.g. pi.uplink=2Mbit/s.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw time and memory: png, svg or pdf.")
    ] = None,
    method: MethodName = "",
    options: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan every device of a run: topology, cut, memory, time, bytes, what the server can learn, and why.

    'fedsplit plan report RUN' is 'fedsplit report RUN': the plan of a run against what happened.
    """
    if run_folder is not None:
        _report(run_file, run_folder, as_json)
        return
    if plot is not None:
        check_plot(plot)
    run = with_method(load(run_file), method, options)
    model, devices, host = inputs(run, run_file, fleet, server)
    chosen = method_of(run)
    run = settled(run, chosen)
    check_kinds(run, model.kinds)
    for text in change or ():
        devices = what_if(devices, text)
    if explain and explain not in devices:
        near = difflib.get_close_matches(explain, devices, 1)
        fix = f"did you mean {near[0]!r}?" if near else ""
        raise ConfigError([Problem("--explain", repr(explain), f"one of {', '.join(devices)}", fix)])
    devices, torch = _with_torch(devices, chosen)
    all_asked = questions(model, devices, run, server=host, travels=travels(chosen, run, len(devices)))
    try:
        found, asked = _plan(with_codecs(all_asked), explain)
    except PlanError as error:
        raise PlanError(f"{error}\n{torch}" if torch else str(error)) from None
    if torch:
        typer.echo(f"note: {torch}", err=True)
    if plot is not None:
        typer.echo(f"drawn: {write_plot(picture(found, asked), plot)}", err=True)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    elif explain:
        print_explanation(found.clients[0], asked[explain])
    else:
        print_plan(found, asked)


def _report(word: Path, folder: Path, as_json: bool) -> None:
    if str(word) != "report":
        found = f"two names, {str(word)!r} and {str(folder)!r}"
        raise ConfigError([Problem("arguments", found, "one run file, or: fedsplit plan report RUN")])
    report(folder, as_json)


def _with_torch(devices: Mapping[str, DeviceProfile], method: Method | Phases) -> tuple[dict[str, DeviceProfile], str]:
    """(the devices with torch's memory where the method needs torch, what to say of those that are without it)."""
    why = next((one.needs_torch for one in every(method) if one.needs_torch), "")
    small = [name for name, device in devices.items() if device.without_torch] if why else []
    changed = {name: device.with_torch if name in small else device for name, device in devices.items()}
    counted = f"counted with torch's {size(TORCH_BYTES)}, not with the program without it of their profiles"
    return changed, f"method {method.name!r} {why}; {counted}: {', '.join(small)}" if small else ""


def _plan(asked: Mapping[str, Question], explain: str) -> tuple[Plan, Mapping[str, Question]]:
    """(the plan, the questions it answers); to ``explain`` one client: its plan alone."""
    if any(question.run.plan.layers == "rooms" for question in asked.values()):
        return in_rooms({explain: asked[explain]} if explain else asked)
    try:
        found, final = planned(asked)
    except PlanError:
        if not explain:
            raise
        # Another client that fits nothing must not keep this one's arithmetic from being shown; it shares the server.
        final = balanced(asked)
        return sealed(
            Plan(round=0, clients=(answer(explain, final[explain]),), seed=final[explain].run.run.seed)
        ), final
    if not explain:
        return found, final
    one = tuple(client for client in found.clients if client.client == explain)
    return sealed(msgspec.structs.replace(found, clients=one)), final


def model_card(run: RunFile, near: Path) -> ModelCard:
    """The card of the run's model: shipped by name, in a folder, or (its config alone) from the hub.

    Raises ConfigError where there is none.
    """
    path = config_file(run.model.path, near)
    return card(read_config(path), run.model.task, len(run.model.labels), str(path))


def config_file(name: str, near: Path) -> Path:
    """The ``config.json`` of a model: shipped by name, in a folder, the file itself, or of a hub id.

    Raises ConfigError where there is none.
    """
    if name in assets.NAMES:
        return assets.path(name) / "config.json"
    place = Path(name).expanduser()
    place = place if place.is_absolute() else near / place
    path = place if place.is_file() else place / "config.json"
    return path if path.is_file() else _from_hub(name, place)


def read_config(path: Path) -> dict[str, Any]:
    """The parsed file. Raises ConfigError where it cannot be read, or is no JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {error}", str(path)) from error
    if not isinstance(config, dict):
        raise ConfigError(f"found a JSON {type(config).__name__}, expected an object", str(path))
    return config


def _from_hub(name: str, folder: Path) -> Path:
    """``config.json`` of a hub id, a few kilobytes; the weights are not touched."""
    problem = Problem(
        "model.path", repr(name), f"a folder with a config.json, a hub id, or {' or '.join(assets.NAMES)}",
        f"there is no {folder / 'config.json'}",
    )  # fmt: skip
    if name.count("/") != 1 or folder.exists():
        raise ConfigError([problem])
    try:
        from huggingface_hub import hf_hub_download

        typer.echo(f"asking the hub for the config.json of {name}", err=True)
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:
        # The hub's client raises a dozen kinds of errors; for the reader they are one: the model is not to be had.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError([problem._replace(fix=f"the hub says: {first}")]) from error


def inputs(
    run: RunFile, run_file: Path, fleet: str, server: str
) -> tuple[ModelCard, dict[str, DeviceProfile], DeviceProfile | None]:
    """(the model, clients with their devices, the server's machine). Raises ConfigError: all that is wrong with any."""
    gathered = Gathered()
    gathered.take("", lambda: method_of(run))
    model = gathered.take("", lambda: model_card(run, run_file.parent))
    devices, host = _machines(run, run_file.parent, fleet, server, gathered)
    if model is not None:
        gathered.take("", lambda: check_rank(model, run.lora.targets, run.lora.rank, run.plan.ranks))
    gathered.refuse(str(run_file))
    assert model is not None
    return model, devices, host


def machines(
    run: RunFile, near: Path, fleet: str, server: str
) -> tuple[dict[str, DeviceProfile], DeviceProfile | None]:
    """(clients with their devices, the server's machine): from the fleet, else the run file, else this machine."""
    gathered = Gathered()
    found = _machines(run, near, fleet, server, gathered)
    gathered.refuse()
    return found


def _machines(
    run: RunFile, near: Path, fleet: str, server: str, gathered: Gathered
) -> tuple[dict[str, DeviceProfile], DeviceProfile | None]:
    host = gathered.take("--server", lambda: find(server)) if server else None
    if fleet:
        members = gathered.take("--fleet", lambda: load_fleet(fleet))
        return (dict(members.devices), host or members.server) if members else ({}, host)
    if not run.clients:
        mine = gathered.take("device", this_machine)
        return {"this-device": mine} if mine else {}, host
    known: dict[str, DeviceProfile | None] = {}
    for index, client in enumerate(run.clients):
        name = client.device or "here"
        if name not in known:
            read = this_machine if name == "here" else partial(find, name, near)
            known[name] = gathered.take(f"clients[{index}].device", read)
    found = {client.name: known[client.device or "here"] for client in run.clients}
    return {name: device for name, device in found.items() if device}, host


def this_machine() -> DeviceProfile:
    """This machine's kept profile, with a warning where it was measured on another architecture. Raises ConfigError."""
    found = own()
    if warning := foreign(found):
        typer.echo(f"warning: {warning}", err=True)
    return found
