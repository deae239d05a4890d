"""A client that takes part in one run after the other, so that torch is imported once for all of them.

    python -m fedsplit.cli.bench_guest

Every line of standard input is what ``fedsplit join`` is given: ``{"link", "data", "name", "profile", "state",
"model"}``. It answers ``{"ready": true}`` when the round has begun, waits for a line, and answers with the seconds of
every step.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fedsplit.devices.find import find
from fedsplit.events import Event, RoundStarted, StepDone


def main() -> None:
    for line in sys.stdin:
        taken = trained(json.loads(line))
        print(json.dumps({"seconds": taken}), flush=True)


def trained(asked: dict[str, Any]) -> list[float]:
    """Seconds of every step of a run, all of it."""
    from fedsplit_client.join import join

    taken: list[float] = []

    def heard(event: Event) -> None:
        if isinstance(event, StepDone):
            taken.append(event.seconds)
        elif isinstance(event, RoundStarted):
            print(json.dumps({"ready": True}), flush=True)
            if not sys.stdin.readline():
                sys.exit(0)

    link, data = asked.pop("link"), asked.pop("data")
    join(link, data, profile=find(asked.pop("profile")), emit=heard, **asked)
    return taken


if __name__ == "__main__":
    main()
