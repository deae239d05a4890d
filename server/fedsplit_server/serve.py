"""The operator's process: open the run, load the body, listen, and host the run until it is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from fedsplit.config.load import dumps
from fedsplit.config.run import RunFile
from fedsplit.devices.here import free_memory
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.units import size, speed
from fedsplit.errors import ConfigError, OutOfMemory, Problem
from fedsplit.events import Emit, Note, silent
from fedsplit.method.of_run import method_of as method_of_run
from fedsplit.method.of_run import mixes_ranks
from fedsplit.method.record import GlobalState, Method, Phases
from fedsplit.method.settled import settled
from fedsplit.method.stored import weights_digest
from fedsplit.plan.depth import check_depth, check_kinds
from fedsplit.probe.measure import this_device
from fedsplit.split.base import Base, open_base
from fedsplit.split.engine import Engine
from fedsplit.split.loader import needed_bytes
from fedsplit.split.placement import device_of, free_bytes
from fedsplit.split.segment import Span, build, dtype_of
from fedsplit.state.rundir import RunDir
from fedsplit.train.exported import model_folder
from fedsplit.train.start import first_state, refuse_dead, refuse_wide_clients
from fedsplit.wire.link import JoinLink
from fedsplit_server.account import Account
from fedsplit_server.assets import Assets
from fedsplit_server.gateway import Gateway
from fedsplit_server.graphs import Graphs
from fedsplit_server.host import Host, Parts
from fedsplit_server.keeper import Keeper
from fedsplit_server.keys import ServerKeys, load_keys
from fedsplit_server.rehearsal import rehearse
from fedsplit_server.validation import validation

MEASURE_S = 1.0
"""Enough for the planner, which compares devices, and short enough to wait for."""


@dataclass(frozen=True)
class Served:
    """How a run ended. ``digest`` is that of the final adapter: equal digests mean equal bits."""

    folder: Path
    reason: str
    rounds: int
    metrics: dict[str, float]
    digest: str


def run_folder(run: RunFile) -> Path:
    """Where the run keeps its state: ``run.dir``, else ``runs/<name>`` in the working directory."""
    return Path(run.run.dir) if run.run.dir else Path("runs") / run.run.name


def _first(base: Base, run: RunFile, method: Method | Phases) -> GlobalState:
    """The state before round 0, with which the method can work. Raises ConfigError where it cannot."""
    first = first_state(base, run)
    refuse_dead(first, method)
    refuse_wide_clients(first, method, run)
    return first


def serve(
    run: RunFile,
    *,
    device: str = "cpu",
    memory_bytes: int = 0,
    profile: DeviceProfile | None = None,
    resume: bool = False,
    keep_open: bool = False,
    emit: Emit = silent,
    ready: Callable[[str], None] = lambda link: None,
) -> Served:
    """Host a run until it is done. ``ready`` gets the join line once the port is open.

    ``keep_open``: train nothing, answer ``fedsplit predict`` with the run's best adapter until interrupted.
    ``memory_bytes`` > 0 refuses a body that is larger, before anything is loaded. ``profile``: what clients' plans take
    this machine for; None: as measured, which takes a second the first time.

    :raises ConfigError: the run file, the model or the folder is wrong. :raises LinkError: the port is taken.
    :raises OutOfMemory: the body does not fit. :raises Timeout: the clients did not come.
    """
    device_of(device)  # before a folder is made and a model read
    folder = RunDir(run_folder(run))
    method = method_of(run)
    with ExitStack() as stack:
        stack.enter_context(folder.lock())
        resumed = folder.begin(dumps(run), resume=resume)
        given, run = run, settled(run, method)
        base = open_base(model_folder(run.model.path))
        _check_model(run, base)
        first = _first(base, run, method)
        # Before the body is loaded: plans count it into what is free now.
        own = profile or this_device(emit=emit, seconds=MEASURE_S, device=str(device_of(device)))
        emit(Note(text=f"plans take this machine for {described(own)}"))
        engine = engine_of(run, base, device, memory_bytes)
        keys = load_keys(folder.keys)
        account = Account(folder.path, given, base.identity, own, device, resumed=resumed, silent=keep_open)
        gateway = stack.enter_context(_gateway(run, keys, emit))
        journal = stack.enter_context(folder.journal())
        validate = validation(run, base, device) if run.server_data.path else None
        keeper = Keeper(run, folder, journal, method, first, emit, validate)
        files = Assets(base, run.model, folder.path / "segments")
        parts = Parts(
            run=run,
            base=base,
            engine=engine,
            keeper=keeper,
            files=files,
            graphs=stack.enter_context(Graphs(base, run, files, emit=emit)),
            invite=keys.invite.hex() if run.server.curve else "",
            era=folder.next_era(),
            server=own,
            keep_open=keep_open,
        )
        host = Host(parts, gateway, emit)
        address, port = gateway.address
        ready(str(keys.link(run.server.public_host or address, port) if run.server.curve else JoinLink(address, port)))
        host.loop()
        return account.ended(_served(folder, host, keeper))


def _gateway(run: RunFile, keys: ServerKeys, emit: Emit) -> Gateway:
    return Gateway(run.server.host, run.server.port, keys.pair if run.server.curve else None, emit=emit)


def _served(folder: RunDir, host: Host, keeper: Keeper) -> Served:
    state, metrics = keeper.best()
    return Served(folder.path, host.course.reason, state.round, metrics, weights_digest(state))


def described(own: DeviceProfile) -> str:
    """The profile in one line: whoever measured at a busy moment sees it here."""
    when = f", measured {own.measured}" if own.measured else ""
    return f"{own.name}: {speed(own.flops['float32'])} in float32, {size(own.free_memory_bytes)} free{when}"


def method_of(run: RunFile) -> Method | Phases:
    """The run's method, tried on three made-up clients.

    :raises ConfigError: what ``of_run.method_of`` raises; or it does not merge them, or asks of devices what they do
        not do yet.
    """
    method = method_of_run(run)
    rehearse(method, run.method.name, mixed=mixes_ranks(run))
    return method


def _check_model(run: RunFile, base: Base) -> None:
    """What the run file asks of the model. One with learnt positions has no embedding beyond them; others were never
    trained there."""
    check_depth(run, base.num_layers)
    if run.model.head == "local" and run.policy.shares_labels:
        fix = "set policy.shares_labels = false: in topology v the head is at the server"
        raise ConfigError([Problem("model.head", '"local"', "a head on every device", fix)])
    check_kinds(run, set(getattr(base.config, "layer_types", None) or ()))
    positions = getattr(base.config, "max_position_embeddings", None)
    if positions is None or run.model.task == "image-classification":
        return
    if base.family.name == "roberta":  # its first positions stand for padding
        positions -= int(base.config.pad_token_id) + 1
    if run.model.max_length > positions:
        fix = "lower it; longer texts are cut, or split with data.long"
        found, expected = str(run.model.max_length), f"at most the model's context of {positions} tokens"
        raise ConfigError([Problem("model.max_length", found, expected, fix)])


def engine_of(run: RunFile, base: Base, device: str, memory_bytes: int) -> Engine:
    """The layers that clients may ask for, with the head where labels may come here."""
    lo = 0 if run.policy.exposes_tokens else min(run.policy.min_front, base.num_layers)
    span = Span(lo, base.num_layers, embeds=False, heads=run.policy.shares_labels)
    weights = _refuse_too_large(run, base, span, memory_bytes, device_of(device))
    granted = run.policy.max_server_bytes
    segment = build(
        base,
        span,
        task=run.model.task,
        num_labels=len(run.model.labels) or None,
        lora=run.lora,
        dtype=run.model.dtype,
        device=device,
        train_head=run.model.head != "frozen",
        bits=dict.fromkeys(range(base.num_layers), run.server.bits),
    )
    stash = min(run.server.stash_bytes, granted - weights) if granted else run.server.stash_bytes
    return Engine(segment, stash_bytes=stash)


def _refuse_too_large(run: RunFile, base: Base, span: Span, memory_bytes: int, device: torch.device) -> int:
    """The bytes of the weights, before one is loaded. A budget must hold the stash as well; without one, at least the
    weights must fit. What the policy grants beyond the weights is the stash's."""
    stash, labels, kind = 0, len(run.model.labels) or None, dtype_of(run.model.dtype)
    weights = needed_bytes(base, span, run.model.task, labels, dtype=kind, bits=run.server.bits)
    fix = "serve on a machine with more memory, or raise policy.min_front: then devices hold more layers"
    granted = run.policy.max_server_bytes
    if 0 < granted < weights:
        more = "raise it, or raise policy.min_front: then devices hold more layers"
        raise OutOfMemory("the body", weights, granted, more, limit="policy.max_server_bytes allows")
    if memory_bytes:
        stash = run.server.stash_bytes
        fix = f"{weights / 1e6:,.0f} MB are weights, {stash / 1e6:,.0f} MB server.stash_bytes: lower it"
    have = memory_bytes or (free_memory() if device.type == "cpu" else free_bytes(device))
    if weights + stash > have:
        limit = "--gpu-memory allows" if memory_bytes else "this machine has"
        raise OutOfMemory("the body", weights + stash, have, fix, limit=limit)
    return weights
