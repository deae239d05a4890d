"""A real client that trains one step for every line on standard input.

    python -m fedsplit.cli.bench_client LINK DATA NAME PROFILE STATE DEVICE

It is ``fedsplit join`` with an event handler that holds the client after each step until it is told to go on, so that
its steps can take turns with those of another process. Prints ``{"ready": true}`` when the round has begun, then each
step's seconds, loss and bytes as JSON.
"""

from __future__ import annotations

import json
import sys

from fedsplit.devices.find import find
from fedsplit.events import Event, RoundStarted, StepDone


def hold(event: Event) -> None:
    """Report a step and wait for the word; the process ends when nobody is there to give it."""
    if isinstance(event, StepDone):
        moved = event.up_bytes + event.down_bytes
        print(json.dumps({"seconds": event.seconds, "loss": event.loss, "bytes": moved}), flush=True)
    elif isinstance(event, RoundStarted):
        print(json.dumps({"ready": True}), flush=True)
    else:
        return
    if not sys.stdin.readline():
        sys.exit(0)


def main(link: str, data: str, name: str, profile: str, state: str, device: str) -> None:
    from fedsplit_client.join import join

    join(link, data, name=name, profile=find(profile), device=device, state=state, emit=hold)


if __name__ == "__main__":
    main(*sys.argv[1:])
