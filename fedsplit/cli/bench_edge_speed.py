"""How fast NumPy is here now: what a device without torch is planned by, measured beside the steps that it predicts.

python -m fedsplit.cli.bench_edge_speed
"""

from __future__ import annotations

import json
import sys

from fedsplit.probe.speed import Engine, layer_overhead, memory_bandwidth, speed

SECONDS = 0.3


def main() -> None:
    """One measurement a line: FLOP/s of a layer, seconds of a layer so small that only its fixed costs count, B/s."""
    engine = Engine(False, "cpu")
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        found = {
            "flops": speed(engine, "float32", SECONDS),
            "overhead_s": layer_overhead(engine, SECONDS / 4),
            "bandwidth_bps": memory_bandwidth(engine, SECONDS / 4),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
