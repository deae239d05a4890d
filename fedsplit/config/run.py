"""The run file: everything that decides what is trained, in one TOML document.

Structs only; rules that span fields live in ``check.py`` and are reported all at once. Every key not written here is
refused with its path. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Task = Literal["causal-lm", "classification", "regression", "image-classification"]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: unknown keys are errors."""


class RunSection(Section):
    name: str = "run"
    seed: int = 0
    dir: str = ""
    """Where the run keeps its state; empty: ``runs/<name>`` beside the run file."""


class ModelSection(Section):
    path: str
    """A local folder, a hub id, or a name that ships with fedsplit: ``minilm``, ``pydoc-llama``."""
    task: Task = "causal-lm"
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids (classification tasks)."""
    max_length: int = 128
    """Longer texts are cut to this many tokens, and the cut is reported."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    head: Literal["fedavg", "frozen", "local"] = "fedavg"
    """What happens to a classification head: averaged, never trained, or kept by each client."""


class LoraSection(Section):
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Module names as peft understands them; empty: the attention's query and value projections."""
    rslora: bool = False


class DataSection(Section):
    """How a row becomes a text: names of the columns. Empty: found by their usual names."""

    text: str = ""
    text_pair: str = ""
    label: str = ""
    prompt: str = ""
    completion: str = ""
    messages: str = ""
    image: str = ""
    eval_fraction: float = 0.1
    """Share of a client's own rows kept for its own test; 0: no test."""


class TrainSection(Section):
    rounds: int = 10
    steps: int = 10
    """Optimiser steps of each client in each round."""
    batch: int = 16
    micro_batches: int = 1
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip: float = 0.0
    """Joint gradient norm over all segments; 0: no clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0


class RoundsSection(Section):
    clients: int = 1
    """A round starts when this many clients are there."""
    quorum: int = 0
    """Updates needed to commit a round; 0: all that started."""
    deadline_s: float = 600.0
    participation: float = 1.0
    """Share of the clients present that is drawn for a round."""
    patience_s: float = 300.0
    """How long the server waits for missing clients, and a client for a missing server."""


class ServerSection(Section):
    host: str = "127.0.0.1"
    port: int = 5700
    """0: any free port, printed at start."""
    public_host: str = ""
    """The address that devices are told to dial; empty: ``host``."""
    adapters: Literal["per-client", "shared-concat", "shared-sequential"] = "per-client"
    stash_bytes: int = 2_000_000_000
    """Activations kept between forward and backward, all clients together."""
    curve: bool = True


class PolicySection(Section):
    shares_labels: bool = False
    """Topology ``v``: labels go to the server."""
    exposes_tokens: bool = False
    """Topology ``w``: the server can read the tokens back by nearest embedding."""
    min_front: int = 1


class EvaluateSection(Section):
    every: int = 1
    """Rounds between evaluations; 0: only before and after."""
    clients: bool = True
    """Clients measure on their own test rows."""
    metric: str = ""
    """The metric that chooses the checkpoint; empty: accuracy, or perplexity for language models."""
    patience: int = 0
    """Stop after this many evaluations without improvement; 0: never."""
    batch: int = 32


class ServerDataSection(Section):
    path: str = ""
    """The operator's own validation rows; empty: none."""


class MethodSection(Section):
    name: str = "fedavg"
    options: dict[str, int | float | str | bool] = field(default_factory=dict)


class ClientSection(Section):
    """A client that the operator fixes or simulates; values not given are planned."""

    name: str
    data: str = ""
    device: str = ""
    """A profile's name or file; empty: measured."""
    topology: Literal["", "local", "u", "v", "w"] = ""
    cut: tuple[int, int] | None = None
    batch: int = 0
    threads: int = 0


class RunFile(Section):
    """The whole run file. ``[[clients]]`` is optional."""

    model: ModelSection
    run: RunSection = field(default_factory=RunSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    rounds: RoundsSection = field(default_factory=RoundsSection)
    server: ServerSection = field(default_factory=ServerSection)
    policy: PolicySection = field(default_factory=PolicySection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    server_data: ServerDataSection = field(default_factory=ServerDataSection)
    method: MethodSection = field(default_factory=MethodSection)
    clients: tuple[ClientSection, ...] = ()
