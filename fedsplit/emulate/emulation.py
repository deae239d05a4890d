"""Everything that holds the processes of one run to their devices, from start to end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from fedsplit.devices.units import size
from fedsplit.emulate.ceiling import Ceilings
from fedsplit.emulate.device import Held
from fedsplit.emulate.governor import Governed, Governor
from fedsplit.emulate.relay import Relay, Relays
from fedsplit.errors import OutOfMemory
from fedsplit.wire.link import JoinLink


class Emulation:
    """Context manager: the devices by client. Leaving it closes their links and lets every process run.

    Memory counts from a process's start, its link from the first byte; its speed from ``computes`` on, so that nobody
    waits for a slow import of torch.
    """

    def __init__(self, devices: Mapping[str, Held]) -> None:
        self.devices = devices
        self._stack = ExitStack()
        self._relays, self._governor, self._ceilings = Relays(), Governor(), Ceilings()
        self._pids: dict[str, int] = {}
        self._ways: dict[str, Relay] = {}
        self._governed: dict[str, Governed] = {}

    def __enter__(self) -> Emulation:
        for part in (self._relays, self._governor, self._ceilings):
            self._stack.enter_context(part)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def link(self, name: str, link: JoinLink) -> JoinLink:
        """What ``name`` dials instead of ``link``: the same server, at the end of its device's link."""
        relay = self._ways[name] = self._relays.add(self.devices[name].link, link.host, link.port)
        return replace(link, host=relay.address[0], port=relay.address[1])

    def started(self, name: str, pid: int) -> None:
        """``name`` runs as ``pid``: its memory is watched from now on."""
        self._pids[name] = pid
        self._ceilings.watch(name, pid, self.devices[name].limit_bytes)

    def computes(self, name: str) -> None:
        """``name`` begins to train: its speed is its device's from now on."""
        if name not in self._governed and self.devices[name].share < 1.0:
            held = self.devices[name]
            governed = self._governed[name] = self._governor.hold(self._pids[name], held.share, held.threads)
            if name in self._ways:
                self._ways[name].up.owed_s = governed.owed_s

    def refusal(self, name: str) -> OutOfMemory | None:
        """Why ``name`` was killed here; None when it was not."""
        ceiling = self._ceilings.broken(name)  # also asked of the server, whose memory nobody limits
        if ceiling is None:
            return None
        over = ceiling.peak_bytes - ceiling.limit_bytes
        return OutOfMemory(
            f"client {name}, held to {self.devices[name].profile.name},",
            ceiling.peak_bytes,
            ceiling.limit_bytes,
            f"it was killed {size(over)} above that, and may need more. Give it less to hold (a smaller batch, another "
            f"cut), or correct its profile: fedsplit plan RUN.TOML --explain {name} shows what was counted on",
            limit="a plan may fill there",
        )
