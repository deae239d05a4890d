"""A federated method of one's own, in ten lines: tried on three matrices, then run with three clients.

A method is a record of parts; what is not named is FedAvg's. This one replaces the merge: a client counts as much as
its update points where the others' updates point, so that one who trained on noise has little to say.

    python examples/04_a_method_in_ten_lines.py
"""

from __future__ import annotations

import json
import queue
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import fedsplit
from fedsplit.config.load import loads
from fedsplit.data.stdlib import examples
from fedsplit.devices.find import find
from fedsplit.events import Event, Joined
from fedsplit.lora.adapter import ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.method import Memory, Merged, Method, mean, merge_rule, method, total


@method(paper="none: an example", title="Agreement")
def agreement() -> Method:
    """Weigh every client by how far its update points where the updates of the others point."""

    @merge_rule(equal_ranks=True)
    def merge(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
        moved = parts if memory.previous is None else [part - memory.previous for part in parts]
        rest = [total(moved, p_K) - own * p for own, p in zip(moved, p_K, strict=True)]
        agrees = [p * max(0.0, own.inner(others)) for own, others, p in zip(moved, rest, p_K, strict=True)]
        return Merged(mean(parts, [a / sum(agrees) for a in agrees] if any(agrees) else p_K))

    return Method(merge=merge)


RUN = """
[run]
name = "ten-lines"
dir = "{folder}/run"

[model]
path = "pydoc-llama"
max_length = 48

[train]
rounds = 2
steps = 4
batch = 8
learning_rate = 1e-2

[rounds]
clients = 3
patience_s = 600

[server]
port = 0

[method]
name = "{this_file}:agreement"
"""


def try_by_hand() -> None:
    """Two clients that agree and one that goes its own way; one module of 5 x 3 at rank 1, its first row shown."""
    alike, other = LowRank(np.ones((5, 1)), np.ones((1, 3))), LowRank(np.ones((5, 1)), np.array([[4.0, -8.0, 4.0]]))
    for name, made in (("FedAvg", Method()), ("agreement", agreement())):
        memory = Memory(key=ModuleKey(0, "q_proj"))
        merged = made.merge_rule([alike, alike, other], [1 / 3] * 3, memory).adapter
        print(f"{name:9} merges (1 1 1), (1 1 1) and (4 -8 4) to {merged.dense()[0].round(2)}")


def write_rows(folder: Path) -> dict[str, Path]:
    """Passages of Python's documentation for two clients; the third one's are written backwards."""
    texts = [passage.text for passage in examples("train")[:160]]
    owned = {"ada": texts[:80], "bob": texts[80:], "eve": [text[::-1] for text in texts]}
    for name, own in owned.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own), "utf-8")
    return {name: folder / f"{name}.jsonl" for name in owned}


def train(folder: Path) -> None:
    """Host the run and join it three times, as in 03_four_clients.py."""
    links, events, pi = queue.Queue[str](), queue.Queue[Event](), find("raspberry_pi_5_8gb")
    run = loads(RUN.format(folder=folder.as_posix(), this_file=Path(__file__).resolve().as_posix()))
    with ThreadPoolExecutor() as threads:
        threads.submit(fedsplit.serve, run, ready=links.put, emit=events.put)
        link, clients = links.get(timeout=300), {}
        for name, rows in write_rows(folder).items():
            clients[name] = threads.submit(fedsplit.join, link, rows, name=name, profile=pi, state=folder / name)
            while not isinstance(events.get(timeout=300), Joined):
                pass
        for name, client in clients.items():
            result = client.result().result
            print(f"{name}: perplexity {result.before['perplexity']:.1f} -> {result.after['perplexity']:.1f}")


if __name__ == "__main__":  # the server reads this file too, for the method
    try_by_hand()
    with tempfile.TemporaryDirectory() as scratch:
        train(Path(scratch))
