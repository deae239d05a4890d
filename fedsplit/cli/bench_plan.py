"""``fedsplit bench plan``: how long planning takes, how good the plans are, and what simpler rules would give.

Quality is the slowest client's step. ``gap`` compares it with the certified lower bound of ``plan/fleet.py``;
``common`` and ``equal`` divide two other rules' slowest step by it: one cut for the whole fleet, chosen by the sum of
the devices' speeds as peers that plan at all do, and a fixed split that gives the server the middle half of the layers.
Both get an equal share of the server for each client.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from fedsplit.config.run import ModelSection, RunFile
from fedsplit.devices.find import shelf as profiles
from fedsplit.devices.fleet import load_fleet
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.plan.card import card
from fedsplit.plan.fleet import balance
from fedsplit.plan.model import ModelCard
from fedsplit.plan.prices import Shelf
from fedsplit.plan.question import Question, questions
from fedsplit.plan.solve import solve
from fedsplit.plan.types import Cut, Topology

MINILM = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522,
}  # fmt: skip
DEEP = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 32000, "dtype": "bfloat16",
}  # fmt: skip


def rows(sizes: str = "100,1000,10000") -> list[dict[str, object]]:
    """Distinct devices with a model of 32 layers, then every fleet that ships with a model of MiniLM's shape.

    ``sizes``: numbers of distinct devices. ``common`` and ``equal`` are empty where such a cut does not fit everybody.
    """
    deep = card(DEEP)
    long = RunFile(model=ModelSection(path="llama", dtype="bfloat16"))
    found = [
        _row(f"{count} distinct", deep, distinct(int(count)), long, None) for count in sizes.split(",") if count.strip()
    ]
    small = card(MINILM, "classification", 4)
    run = RunFile(model=ModelSection(path="minilm", task="classification"))
    for path in sorted((profiles() / "fleets").glob("*.toml")):
        fleet = load_fleet(path.stem)
        found.append(_row(path.stem, small, fleet.devices, run, fleet.server))
    return found


def distinct(count: int) -> dict[str, DeviceProfile]:
    """Made-up devices, no two alike: from 4 to 16 GB, 5 to 500 GFLOP/s, 1 to 100 MB/s."""
    found = {}
    for number in range(count):
        part, other = number / count, number * 0.618 % 1
        found[f"d{number:05}"] = DeviceProfile(
            name="made up", arch="", cores=4, threads=4, flops={"float32": 5e9 * 100**part}, memory_bandwidth_bps=1e10,
            memory_bytes=2**35, free_memory_bytes=int(4e9 + 12e9 * other),
            link=Link(up_bps=1e6 * 100**other, down_bps=2e6 * 100**other, latency_s=0.01),
        )  # fmt: skip
    return found


def _row(
    name: str, model: ModelCard, devices: Mapping[str, DeviceProfile], run: RunFile, server: DeviceProfile | None
) -> dict[str, object]:
    start = time.process_time()
    plan = solve(model, devices, run, server=server)
    seconds = time.process_time() - start
    asked = questions(model, devices, run, server=server)
    slowest = max(client.estimate.step_s for client in plan.clients if client.estimate)
    bound = balance(asked)[1] or slowest
    common, equal = _simpler(asked)
    return {
        "fleet": name,
        "devices": len(devices),
        "seconds": round(seconds, 3),
        "step_s": float(f"{slowest:.4g}"),
        "gap": round(max(0.0, slowest / bound - 1), 4),
        "common": round(common / slowest, 2) if np.isfinite(common) else "",
        "equal": round(equal / slowest, 2) if np.isfinite(equal) else "",
    }


def _simpler(asked: Mapping[str, Question]) -> tuple[float, float]:
    """Slowest steps with (the common cut of most throughput, the middle half on the server); infinite: unfit."""
    shelf = Shelf(question=next(iter(asked.values())))
    chosen, layers = shelf.grid.chosen, shelf.grid.works[0].card.num_layers
    slowest, speed = np.zeros(len(chosen)), np.zeros(len(chosen))
    for _, block in shelf.blocks(list(asked.values())):
        total = np.where(block.fits_KO, block.seconds.total_KO, np.inf)
        slowest, speed = np.maximum(slowest, total.max(axis=0)), speed + (1 / total).sum(axis=0)
    quarter = max(1, layers // 4)
    half = Topology.U, Cut(quarter, layers - quarter)
    usable = np.isfinite(slowest)
    common = float(slowest[np.where(usable, speed, -1.0).argmax()]) if usable.any() else np.inf
    return common, float(slowest[chosen.index(half)]) if half in chosen else np.inf
