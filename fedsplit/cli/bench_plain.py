"""A plain peft training step, one for every line on standard input: transformers, peft and torch, nothing of fedsplit.

    python -m fedsplit.cli.bench_plain FOLDER TASK BATCH TOKENS DEVICE

Prints ``{"ready": true}``, then for each line read one step's seconds as JSON. What ``fedsplit bench step`` compares
with; kept as a user of peft would write it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}


def main(folder: str, task: str, batch: int, tokens: int, device: str) -> None:
    causal = task == "causal-lm"
    source: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = source.from_pretrained(folder, dtype=torch.float32)
    settings = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=TARGETS[model.config.model_type],
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
    )
    model = get_peft_model(model, settings).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.randint(4, 500, (batch, tokens), device=device)
    labels = ids if causal else torch.randint(0, model.config.num_labels, (batch,), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        loss = step(model, optimizer, inputs)
        print(json.dumps({"seconds": time.perf_counter() - begun, "loss": loss}), flush=True)


def step(model: Any, optimizer: torch.optim.Optimizer, inputs: Mapping[str, torch.Tensor]) -> float:
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
