"""The same share of a step as ``bench_edge_part``, in torch: the client that ``fedsplit bench edge`` compares with.

python -m fedsplit.cli.bench_edge_torch MODEL RUN PLAN BATCH TOKENS THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import torch

from fedsplit.cli.bench_edge_part import answer, made_batch
from fedsplit.config.run import RunFile
from fedsplit.plan.types import ClientPlan
from fedsplit.split.base import open_base
from fedsplit.train.part import ClientPart
from fedsplit.train.start import first_state


def main(model: str, run_path: str, plan_path: str, batch: int, tokens: int, threads: int) -> None:
    torch.set_num_threads(threads)
    base, run = open_base(model), msgspec.json.decode(Path(run_path).read_bytes(), type=RunFile)
    part = ClientPart(base, msgspec.json.decode(Path(plan_path).read_bytes(), type=ClientPlan), run)
    start = first_state(base, run)
    part.load(start.adapter, start.head)
    rows = made_batch(part.task, batch, tokens)

    def step() -> float:
        if not part.split:
            loss = part.learn(rows, rows.label_tokens, (0,))
        else:
            h_ND = part.forward(0, rows, (0,))
            loss, g_ND = part.tail(rows, h_ND, rows.label_tokens, (0,))
            part.backward(0, g_ND)
        part.step(1.0, 1.0)
        return loss

    answer(step)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
