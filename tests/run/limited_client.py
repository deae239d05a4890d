"""A client process that sleeps an hour in a moment: ``limited_client.py LINK DATA NAME STATE PROFILE LIMITS``.

Everything else is real: processes, sockets, keys, weights. Events go to standard output, as ``fedsplit join --json``.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta

import msgspec

from fedsplit.devices.limits import Limits
from fedsplit.devices.load import load
from fedsplit.events import Event, Finished, RoundStarted, to_json
from fedsplit_client.join import join
from fedsplit_client.sensors import Sensors


def main() -> None:
    link, data, name, state, profile, limits = sys.argv[1:]
    allowed = msgspec.json.decode(limits, type=Limits)
    begun = time.monotonic()
    jumped = [timedelta()]

    def now() -> datetime:
        return datetime(2026, 1, 1) + timedelta(seconds=time.monotonic() - begun) + jumped[0]

    def sleep(seconds: float) -> None:
        time.sleep(0.05)
        jumped[0] += timedelta(hours=1)

    def emit(event: Event) -> None:
        sys.stdout.write(to_json(event) + "\n")
        sys.stdout.flush()
        if isinstance(event, RoundStarted) and event.round == 1 and allowed.between and jumped[0].days < 1:
            jumped[0] += timedelta(hours=20)  # its window closes in the middle of this round

    joined = join(
        link, data, name=name, state=state, profile=load(profile), emit=emit, measure_link=False,
        limits=allowed,
        sensors=Sensors(now, lambda: 100 * time.monotonic(), sleep, lambda: False, lambda: 0.0, lambda: 40.0),
    )  # fmt: skip
    emit(Finished(client=name, round=joined.result.round, reason=joined.result.reason, up_bytes=joined.up_bytes))


if __name__ == "__main__":
    main()
