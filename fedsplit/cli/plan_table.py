"""A plan as a table, and one client's plan as arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.cli.plan_layers import cut_down, layers_table
from fedsplit.devices.units import duration, rate, size, speed
from fedsplit.plan.explain import MEMORY, TIME, lack
from fedsplit.plan.frontier import every_option, frontier, shown
from fedsplit.plan.given import steps_of
from fedsplit.plan.memory import Memory
from fedsplit.plan.options import Option, describe
from fedsplit.plan.question import ASSUMED_SERVER, Question, options_of, priced, step_as_planned
from fedsplit.plan.timing import Times
from fedsplit.plan.trained import offers, trained
from fedsplit.plan.types import ClientPlan, Plan, Topology

SHOWN = 12
"""Candidates listed in an explanation."""

SEES = {
    Topology.LOCAL: "adapter",
    Topology.U: "activations",
    Topology.V: "labels too",
    Topology.W: "the input",
}
"""What the server learns, in a word; the sentence is in the plan."""


SHORT = {
    "speed of the device": "device",
    "speed of the server": "server",
    "latency of the link": "latency",
    "memory of the device": "memory",
    "fixed in the run file": "run file",
}
"""What binds, for a narrow column."""

WIDE = 120
"""Columns of a terminal from which on the table shows everything."""


def print_plan(plan: Plan, asked: Mapping[str, Question], console: Console | None = None) -> None:
    """Print a row a client, then what the server can learn from each kind of plan, and the digest."""
    console = console or Console(highlight=False)
    rows = [_row(client, asked[client.client]) for client in plan.clients]
    hidden = () if console.width >= WIDE else ("here", "batch", "disk", "server sees")
    if console.width < WIDE and not any(cut_down(client, asked[client.client]) for client in plan.clients):
        hidden = (*hidden, "train")
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    shown = [header for header in rows[0] if header not in hidden]
    for header in shown:
        left = header in ("client", "plan", "train", "server sees", "limited by")
        whole = header in ("client", "plan", "train", "memory", "a step")
        table.add_column(header, justify="left" if left else "right", no_wrap=whole)
    for row in rows:
        table.add_row(*(row[header] for header in shown))
    console.print(table)
    console.print(Text("up and down: bytes of one round"), style="dim")
    for text, names in _by_exposure(plan.clients).items():
        console.print(Text.assemble((", ".join(names), "bold"), f": {text}"), soft_wrap=True)
    for reason in (*plan.reasons, f"digest {plan.digest[:16]}"):
        console.print(Text(reason, style="dim"), soft_wrap=True)


def _row(client: ClientPlan, question: Question) -> dict[str, Text | str]:
    cost = client.estimate
    assert cost is not None
    option = chosen(client, question)
    steps, here = steps_of(client, question.run), sum(layer.place == "client" for layer in client.layers)
    return {
        "client": Text(client.client, style="bold"),
        "plan": describe(client.topology, client.cut) + ("" if client.wire_up == "raw" else f" · {client.wire_up}"),
        "here": f"{here} of {len(client.layers)}",
        "train": trained(client.layers) + (f" · {steps} steps" if client.steps else ""),
        "batch": f"{client.batch}" if client.micro_batches == 1 else f"{client.micro_batches} × {option.work.rows}",
        "memory": f"{size(cost.memory_bytes)} of {size(question.device.budget_bytes)}",
        "disk": size(cost.disk_bytes),
        "a step": duration(cost.step_s),
        "up": size(cost.up_bytes * steps + cost.factors_up_bytes),
        "down": size(cost.down_bytes * steps + cost.round_down_bytes),
        "server sees": SEES[client.topology],
        "limited by": SHORT.get(client.binding, client.binding),
    }


def chosen(client: ClientPlan, question: Question) -> Option:
    """The candidate that the plan took."""
    work = step_as_planned(question, client)
    return priced(question, client.topology, client.cut, [work])


def _by_exposure(clients: Sequence[ClientPlan]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for client in clients:
        grouped.setdefault(client.exposure, []).append(client.client)
    return grouped


def print_explanation(client: ClientPlan, question: Question, console: Console | None = None) -> None:
    """Print the device, the sums of memory and time, the reasons, and the candidates that were compared."""
    console = console or Console(highlight=False)
    option, device = chosen(client, question), question.device
    link = device.link
    facts = [
        f"{device.name}: {speed(device.flops['float32'])}{_measured(question)}, "
        f"{size(device.memory_bandwidth_bps)}/s memory, {size(device.budget_bytes)} to use",
        f"link: {rate(link.up_bps)} up, {rate(link.down_bps)} down, {duration(link.latency_s)}" if link else "no link",
        f"server: {(question.server or ASSUMED_SERVER).name}, {question.share:.3g} of it{_link_share(question)}",
    ]
    console.print(Text(f"{client.client}: {option.name}", style="bold"))
    for fact in facts:
        console.print(Text(fact, style="dim"), soft_wrap=True)
    console.print(_sums(option.memory, option.times))
    chosen_layers = cut_down(client, question) and not client.absent
    if chosen_layers:
        console.print(layers_table(client, question))
    for reason in (*client.reasons, *(offers(client, question) if question.run.plan.layers == "fit" else ())):
        console.print(Text(f"· {reason}"), soft_wrap=True)
    console.print(Text(client.exposure, style="italic"), soft_wrap=True)
    console.print(_candidates(question, option, whole=not chosen_layers))
    console.print(_frontier(question, option))


def _measured(question: Question) -> str:
    """What was measured, where plans count on less of it (``plan.robust``)."""
    usual = question.usual[0] if question.usual else question.device
    return f" ({speed(usual.flops['float32'])} / {usual.caution:.3g})" if usual != question.device else ""


def _frontier(question: Question, chosen: Option) -> Table:
    found = frontier(list(every_option(question)))
    title = f"memory against time: {len(found)} plans that no other beats in both"
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", title=title, title_justify="left")
    for header in ("memory", "a step", "plan", "micro-batches", "layers", ""):
        table.add_column(header, justify="right" if header in ("memory", "a step", "micro-batches") else "left")
    for option in shown(found, chosen):
        note = "chosen" if option == chosen else "" if option.fits else lack(option)
        pieces = str(option.work.micro_batches), "twice" if option.work.checkpoint else "once"
        table.add_row(size(option.memory.total), duration(option.times.total), option.name, *pieces, note)
    return table


def _link_share(question: Question) -> str:
    return f", {question.link_share:.3g} of its link" if question.server and question.server.link else ""


def _sums(memory: Memory, times: Times) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", show_footer=True)
    table.add_column("memory", "together")
    table.add_column("", size(memory.total), justify="right")
    table.add_column("time of a step", "together")
    table.add_column("", duration(times.total), justify="right")
    left = [
        (MEMORY[f.name], size(getattr(memory, f.name)))
        for f in fields(memory)
        if f.name in MEMORY and getattr(memory, f.name)
    ]
    right = [(TIME[f.name], duration(getattr(times, f.name))) for f in fields(times) if getattr(times, f.name)]
    for index in range(max(len(left), len(right))):
        table.add_row(*_at(left, index), *_at(right, index))
    return table


def _at(rows: Sequence[tuple[str, str]], index: int) -> tuple[str, str]:
    return rows[index] if index < len(rows) else ("", "")


def _candidates(question: Question, best: Option, *, whole: bool) -> Table:
    options, _ = options_of(question)
    title = f"{len(options)} candidate{'s' * (len(options) != 1)}{'' if whole else ' with all layers'}"
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", title=title, title_justify="left")
    for header in ("plan", "a step", "memory", ""):
        table.add_column(header, justify="right" if header in ("a step", "memory") else "left")
    for option in options[:SHOWN]:
        note = "chosen" if option == best else "" if option.fits else lack(option)
        table.add_row(option.name, duration(option.times.total), size(option.memory.total), note)
    if len(options) > SHOWN:
        table.add_row("…", "", "", "")
    return table
