"""A client process whose days are seconds long: ``limited_client.py LINK DATA NAME STATE PROFILE DAY_S LIMITS``.

Everything else is real: processes, sockets, keys, weights. Events go to standard output, as ``fedsplit join --json``.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta

import msgspec

from fedsplit.devices.limits import Limits
from fedsplit.devices.load import load
from fedsplit.events import Event, Finished, to_json
from fedsplit_client.join import join
from fedsplit_client.sensors import Sensors


def main() -> None:
    link, data, name, state, profile, day_s, limits = sys.argv[1:]
    begun, speed = time.time(), 86_400 / float(day_s)

    def now() -> datetime:
        return datetime(2026, 1, 1) + timedelta(seconds=(time.time() - begun) * speed)

    def sleep(seconds: float) -> None:
        time.sleep(max(0.02, seconds / speed))

    def clock() -> float:
        return (time.time() - begun) * speed

    def emit(event: Event) -> None:
        sys.stdout.write(to_json(event) + "\n")
        sys.stdout.flush()

    joined = join(
        link, data, name=name, state=state, profile=load(profile), emit=emit, measure_link=False,
        limits=msgspec.json.decode(limits, type=Limits),
        sensors=Sensors(now, clock, sleep, lambda: False, lambda: 0.0, lambda: 40.0),
    )  # fmt: skip
    emit(Finished(client=name, round=joined.result.round, reason=joined.result.reason, up_bytes=joined.up_bytes))


if __name__ == "__main__":
    main()
