"""One device after the other, one cut after the other: measured steps of an emulated device with an emulated server.

Two processes are started once, a server and a client, and every cut is a run of its own between them: real TCP with
encryption, through a relay with the device's link. Both are held to their share of one core, so that what else this
machine does meanwhile hardly counts.
"""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fedsplit.cli.bench_runs import Shape, client, write_run
from fedsplit.cli.bench_turns import Turns
from fedsplit.config.run import Task
from fedsplit.devices.load import save
from fedsplit.devices.profile import DeviceProfile
from fedsplit.emulate.governor import Governed, Governor
from fedsplit.emulate.relay import Relay, Relays
from fedsplit.plan.options import Option
from fedsplit.wire.link import JoinLink

NAME = "device"
WARMING = 1
"""The first step of a run builds the optimiser's state and fills caches."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained on every device, whatever its cut. ``folder``: of the model; ``data``: rows that fill it."""

    folder: Path
    model: str
    task: Task
    data: Path
    batch: int
    tokens: int


class Cuts:
    """Context manager: the two processes, the relays and the governor. ``share``: of a core, the server's."""

    def __init__(self, training: Training, scratch: Path, server: DeviceProfile, share: float) -> None:
        self._training, self._scratch, self._share = training, scratch, share
        self._server = save(server, scratch / "server.toml")
        self._numbers = itertools.count()
        self._stack = ExitStack()

    def __enter__(self) -> Cuts:
        self._relays = self._stack.enter_context(Relays())
        self._governor = self._stack.enter_context(Governor())
        self._host = self._stack.enter_context(Turns("fedsplit.cli.bench_host", [], 1, {}))
        self._guest = self._stack.enter_context(Turns("fedsplit.cli.bench_guest", [], 1, {}))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def seconds(self, device: DeviceProfile, share: float, option: Option, steps: int) -> list[float]:
        """Seconds of ``steps`` steps with this cut on ``device``, which gets ``share`` of a core."""
        folder = self._scratch / f"run-{next(self._numbers)}"
        folder.mkdir()
        profile = save(device, folder / "device.toml")
        link = self._host.step(json.dumps({"run": str(self._run(folder, option, steps)), "profile": str(self._server)}))
        dialled = JoinLink.parse(link["link"])
        relay = self._relays.add(device.link, dialled.host, dialled.port) if device.link else None
        self._guest.step(json.dumps(self._asked(folder, dialled, relay, profile)))
        held = [self._governor.hold(self._guest.pid, share), self._governor.hold(self._host.pid, self._share)]
        try:
            taken = self._trained(relay, held)
        finally:
            for one in held:
                one.release()
        self._host.ready()
        return taken[WARMING:]

    def _run(self, folder: Path, option: Option, steps: int) -> Path:
        training = self._training
        cut = None if option.topology == "local" else (option.cut.c1, option.cut.c2)
        fixed = client(NAME, option.topology, cut, data=training.data)
        shape = Shape(batch=training.batch, tokens=training.tokens, steps=steps + WARMING)
        return write_run(folder, training.model, training.task, [replace(fixed, device="")], shape)

    def _asked(self, folder: Path, link: JoinLink, relay: Relay | None, profile: Path) -> dict[str, str]:
        if relay is not None:
            link = JoinLink(*relay.address, link.server_key, link.invite)
        return {
            "link": str(link),
            "data": str(self._training.data),
            "name": NAME,
            "profile": str(profile),
            "state": str(folder / "state"),
            "model": str(self._training.folder),
        }

    def _trained(self, relay: Relay | None, held: list[Governed]) -> list[float]:
        if relay is not None:
            relay.up.owed_s, relay.down.owed_s = held[0].owed_s, held[1].owed_s
        answer: dict[str, Any] = self._guest.step("go")
        return [float(one) for one in answer["seconds"]]
