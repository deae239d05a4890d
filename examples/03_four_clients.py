"""Four clients and a server train one adapter together, each client holding another part of the model.

The model is the small Llama that ships with fedsplit; it has read Python's documentation. Now four owners teach it
Python's source code, each with the sources of another package, which never leave them. The parties are threads here so
that all of it is in one file; they talk over encrypted TCP, and the same calls work on five machines.

    python examples/03_four_clients.py
"""

from __future__ import annotations

import argparse
import inspect
import json
import queue
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import fedsplit
from fedsplit import assets
from fedsplit.config.load import loads
from fedsplit.data.stdlib import stdlib_folder
from fedsplit.devices.find import find
from fedsplit.events import Event, Joined
from fedsplit.train.exporting import export

# Who owns which sources, and how much of the model each holds (docs/topologies.md).
OWNERS: dict[str, str] = {"json": "local", "email": "u", "http": "v", "asyncio": "w"}
RUN = """
[run]
name = "four"
dir = "{folder}/run"

[model]
path = "pydoc-llama"
max_length = 64

[lora]
targets = ["all-linear"]

[train]
rounds = 3
steps = 6
batch = 8
learning_rate = 1e-2

[rounds]
clients = 4
patience_s = 600

[server]
port = 0

[policy]
shares_labels = true   # v: the labels go to the server
exposes_tokens = true  # w: the server could read the text back
"""


def write_sources(package: str, path: Path) -> Path:
    """The code of a package as rows of JSON, ten lines each."""
    files = sorted((stdlib_folder() / package).glob("*.py"))
    code = [line for file in files for line in file.read_text("utf-8").splitlines() if line.strip()][:1500]
    rows = ["\n".join(code[at : at + 10]) for at in range(0, len(code), 10)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    return path


def mean_loss(model: Any, text: str) -> float:
    """Of a stock transformers or peft model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(assets.path("pydoc-llama"))
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256).input_ids
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def wait_until_joined(name: str) -> None:
    """One after the other: while a model is being put together, transformers and peft change torch for all threads."""
    while not isinstance(event := events.get(timeout=300), Joined) or event.client != name:
        pass
    print(f"{name} joined: topology {event.topology}, cut {event.cut}")


links, events = queue.Queue[str](), queue.Queue[Event]()
with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as threads:
    folder = Path(scratch)
    run = loads(RUN.format(folder=folder.as_posix()))

    # The operator: host the run. `ready` gets the line that a device must type, `emit` all that happens.
    server = threads.submit(fedsplit.serve, run, ready=links.put, emit=events.put)
    link = links.get(timeout=300)
    print(f"{link[:36]}…")

    # The owners: each joins with its own rows, its own keys, and what its device can do.
    clients = {}
    for name, topology in OWNERS.items():
        rows, device = write_sources(name, folder / f"{name}.jsonl"), find("raspberry_pi_5_8gb")
        # Without topology it is planned; without profile this machine is measured.
        options: dict[str, Any] = {"name": name, "topology": topology, "profile": device, "state": folder / name}
        clients[name] = threads.submit(fedsplit.join, link, rows, **options)
        wait_until_joined(name)

    print("client     MB sent   perplexity on its own test rows")
    for name, client in clients.items():
        joined = client.result()
        before, after = joined.result.before["perplexity"], joined.result.after["perplexity"]
        print(f"{name:9} {joined.up_bytes / 1e6:8.1f}   {before:.1f} -> {after:.1f}")
    served = server.result()
    print(f"{served.reason}; the best round is {served.rounds}")

    # The result is a plain peft adapter.
    export(served.folder, folder / "adapter")
    unseen = inspect.getsource(argparse.ArgumentParser.parse_known_args)
    model = transformers.AutoModelForCausalLM.from_pretrained(assets.path("pydoc-llama"))
    alone = mean_loss(model, unseen)
    together = mean_loss(peft.PeftModel.from_pretrained(model, str(folder / "adapter")), unseen)
    print(f"with peft, on a function of argparse: loss {alone:.3f} -> {together:.3f}")
