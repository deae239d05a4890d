"""A server that hosts one run after the other, so that torch is imported once for all of them.

    python -m fedsplit.cli.bench_host

Every line of standard input is ``{"run": RUN.TOML, "profile": FILE}``; it answers ``{"link": …}`` when the port is open
and ``{"done": …}`` when the run is over.
"""

from __future__ import annotations

import json
import sys

from fedsplit.config.load import load
from fedsplit.devices.find import find


def main() -> None:
    from fedsplit_server.serve import serve

    for line in sys.stdin:
        asked = json.loads(line)
        served = serve(load(asked["run"]), profile=find(asked["profile"]), ready=lambda link: _say(link=link))
        _say(done=served.reason)


def _say(**values: str) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
