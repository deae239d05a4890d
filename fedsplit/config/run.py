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


class RunSection(Section, frozen=True, kw_only=True):
    """The run itself."""

    name: str = "run"
    """Letters, digits, dot, dash and underscore; names the run's directory."""
    seed: int = 0
    """Every random draw follows from it: the same seed gives the same run."""
    dir: str = ""
    """Where the run keeps its state; empty: ``runs/<name>`` beside the run file."""


class ModelSection(Section, frozen=True, kw_only=True):
    """The pretrained model and what it shall learn."""

    path: str
    """A local folder, a hub id, or a name that ships with fedsplit: ``minilm``, ``pydoc-llama``."""
    task: Task = "causal-lm"
    """What is learned: language modelling, a class, a number, or the class of an image."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids (classification tasks)."""
    max_length: int = 128
    """Longer texts are cut to this many tokens, and the cut is reported."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights and of the activations."""
    head: Literal["fedavg", "frozen", "local"] = "fedavg"
    """What happens to a classification head: averaged, never trained, or kept by each client."""
    edge_bits: Literal[32, 16, 8, 4] = 32
    """Bits of the matrices in layers and head (the head: 8 at least) on devices without torch."""
    edge_table_bits: Literal[32, 16, 8] = 32
    """Bits of the token embedding on devices without torch."""


class LoraSection(Section, frozen=True, kw_only=True):
    """The trained low-rank adapter."""

    rank: int = 8
    """Rank of the low-rank factors."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped while training."""
    targets: tuple[str, ...] = ()
    """Module names as peft understands them; empty: the attention's query and value projections."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""


class DataSection(Section, frozen=True, kw_only=True):
    """How a row becomes a text: names of the columns. Empty: found by their usual names."""

    text: str = ""
    """The text. A value with braces is a template over columns: ``"{title}. {body}"``."""
    text_pair: str = ""
    """The second text of a sentence pair."""
    label: str = ""
    """The class (id or name) or the number to predict."""
    prompt: str = ""
    """What the model is given; no loss on it."""
    completion: str = ""
    """What the model shall answer; the loss is taken here."""
    messages: str = ""
    """A list of ``{role, content}``; rendered with the model's chat template, loss on the answers only."""
    image: str = ""
    """Path of an image, relative to the data file."""
    long: Literal["cut", "split"] = "cut"
    """A plain text longer than ``model.max_length``: its end is cut off, or it becomes several examples (causal-lm)."""
    eval_fraction: float = 0.1
    """Share of a client's own rows kept for its own test; 0: no test."""


class TrainSection(Section, frozen=True, kw_only=True):
    """The local training of every client."""

    rounds: int = 10
    """Rounds: local steps of every client, closed by one aggregation."""
    steps: int = 10
    """Optimiser steps of each client in each round."""
    batch: int = 16
    """Rows of a client's step."""
    micro_batches: int = 1
    """Pieces a batch is cut into so that it fits; the gradient stays the same."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """The local optimiser, on both sides of the cut."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the trained factors."""
    momentum: float = 0.0
    """Momentum of ``sgd``."""
    clip: float = 0.0
    """Joint gradient norm over all segments; 0: no clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls over all rounds."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""


class RoundsSection(Section, frozen=True, kw_only=True):
    """Who takes part in a round and how long it may last."""

    clients: int = 0
    """A round starts when this many clients are there; 0: all of ``[[clients]]``, at least one."""
    quorum: int = 0
    """Updates needed to commit a round; 0: all that started."""
    deadline_s: float = 600.0
    """Seconds after which a round closes with the updates that arrived."""
    participation: float = 1.0
    """Share of the clients present that is drawn for a round."""
    patience_s: float = 300.0
    """How long the server waits for missing clients, and a client for a missing server."""


class ServerSection(Section, frozen=True, kw_only=True):
    """The operator's process."""

    host: str = "127.0.0.1"
    """The address the server listens on; ``0.0.0.0``: every network of this machine."""
    port: int = 5700
    """0: any free port, printed at start."""
    public_host: str = ""
    """The address that devices are told to dial; empty: ``host``."""
    adapters: Literal["", "per-client", "shared-concat", "shared-sequential"] = ""
    """The body's adapter: one a client, averaged each round; or one for all, stepped together or in turn. Empty: what
    the method says, else one a client."""
    bits: Literal[32, 16, 8, 4] = 32
    """Bits of the frozen matrices in the layers of the body, at most those of ``model.dtype``."""
    stash_bytes: int = 2_000_000_000
    """Activations kept between forward and backward, all clients together."""
    curve: bool = True
    """Encryption and authentication of the connection; turn off only on one machine."""

    @property
    def shared(self) -> bool:
        """Whether all clients train one copy of the body's adapter."""
        return self.adapters.startswith("shared")


class PolicySection(Section, frozen=True, kw_only=True):
    """What may leave a device, and limits that every plan keeps to."""

    shares_labels: bool = False
    """Topology ``v``: labels go to the server."""
    exposes_tokens: bool = False
    """Topology ``w``: the server can read the tokens back by nearest embedding."""
    min_front: int = 1
    """Layers that at least stay on the device, so that the server sees no embeddings; 0 needs ``exposes_tokens``."""
    topologies: tuple[Literal["local", "u", "v", "w"], ...] = ()
    """The topologies that may be planned; empty: all that the other rules allow."""
    min_rank: int = 1
    """No device trains factors of a smaller rank."""
    min_wire_bits: int = 0
    """Bits that a number of the activations and gradients at least has on the wire; 0: any."""
    max_server_bytes: int = 0
    """Memory that the server's work may take at most; 0: what its machine has."""
    round_s: float = 0.0
    """Planned seconds of a round, steps and the factors' transfer, that no device may exceed; 0: no limit."""


class WireSection(Section, frozen=True, kw_only=True):
    """How hidden states and their gradients travel."""

    codecs: tuple[Literal["raw", "bf16", "f16", "int8", "int4"], ...] = ("raw",)
    """What a plan may take, per device: as the model computes, cast, or in whole numbers with scales. ``int4`` is four
    bits on average: five for a hidden state, three for its gradient."""
    gradient_bits: Literal[8, 4, 3] = 3
    """Bits of gradients beside ``int4``: training bears rounding there."""


class PlanSection(Section, frozen=True, kw_only=True):
    """What the planner may decide for a device."""

    layers: Literal["all", "fit", "rooms"] = "all"
    """``fit``: a device that is short of memory or time trains the most valuable layers it can, not all of them.
    ``rooms``: it holds as many layers as it has room for, others every round (set by methods that do so)."""
    ranks: tuple[int, ...] = ()
    """Smaller ranks, that ``fit`` may give a layer; larger ones are named where a device has time for them."""
    bits: tuple[Literal[16, 8, 4], ...] = ()
    """Fewer bits, that ``fit`` may give the frozen matrices of a layer where memory is short."""
    coverage: int = 0
    """Clients that must train each layer; 0: it is only said how many do."""
    checkpoint: bool = True
    """Activations may be computed twice to save memory; the result stays the same."""
    slack: Literal["none", "rank", "steps", "density"] = "none"
    """What clients get that would wait for the slowest: nothing, the largest of ``ranks`` in time, more steps, or more
    of the entries that a method's mask leaves out."""
    overlap: bool = False
    """More micro-batches than memory asks for, where two at once make a step faster; equal to rounding, not the bit."""
    replan: bool = True
    """Plans may change between rounds, from measured times."""
    robust: bool = True
    """Computing counts as slow as in the slowest tenth of a profile's measurement; false: as it usually is."""


class EvaluateSection(Section, frozen=True, kw_only=True):
    """Who is measured when, and what chooses the checkpoint."""

    every: int = 1
    """Rounds between evaluations; 0: only before and after."""
    clients: bool = True
    """Clients measure on their own test rows."""
    metric: str = ""
    """The metric that chooses the checkpoint; empty: accuracy, or perplexity for language models."""
    patience: int = 0
    """Stop after this many evaluations without improvement; 0: never."""
    batch: int = 32
    """Rows of an evaluation batch."""


class ServerDataSection(Section, frozen=True, kw_only=True):
    """The operator's own rows."""

    path: str = ""
    """The operator's own validation rows; empty: none."""


class PhaseSection(Section, frozen=True, kw_only=True):
    """Another method from a round on."""

    round: int
    """The first round of this phase; rounds count from 0."""
    name: str = ""
    """A method, as in ``[method]``; empty: the one above, with its ``options`` and its ``but``."""
    options: dict[str, int | float | str | bool] = field(default_factory=dict)
    """That method's settings; without a name, those that change."""
    but: dict[str, str | dict[str, int | float | str | bool]] = field(default_factory=dict)
    """Stock parts in place of that method's own; without a name, those that change."""


class MethodSection(Section, frozen=True, kw_only=True):
    """How updates are made and merged."""

    name: str = "fedavg"
    """A method of ``fedsplit methods``, or ``./file.py:name``."""
    options: dict[str, int | float | str | bool] = field(default_factory=dict)
    """The method's own settings."""
    but: dict[str, str | dict[str, int | float | str | bool]] = field(default_factory=dict)
    """Stock parts in place of the method's own: a part's name, or a table of it and its options."""
    phases: tuple[PhaseSection, ...] = ()
    """Other methods from later rounds on, each a ``[[method.phases]]`` with its first ``round``."""


class ClientSection(Section, frozen=True, kw_only=True):
    """A client that the operator fixes or simulates; values not given are planned."""

    name: str
    """The client's name, unique in the run."""
    data: str = ""
    """Its rows, for ``fedsplit simulate``; a real device names its own with ``--data``."""
    device: str = ""
    """A profile's name or file; empty: measured."""
    topology: Literal["", "local", "u", "v", "w"] = ""
    """Who holds which segment; empty: planned."""
    cut: tuple[int, int] | None = None
    """(c1, c2): layers [0, c1) and [c2, L) are on the device, [c1, c2) on the server."""
    batch: int = 0
    """Rows of its step; 0: ``train.batch``."""
    threads: int = 0
    """CPU threads of its process; 0: chosen on the device."""
    tag: str = ""
    """What its data is (a language, say), for methods with groups; empty: what the device says."""


class RunFile(Section, frozen=True, kw_only=True):
    """The whole run file. ``[[clients]]`` is optional."""

    model: ModelSection
    run: RunSection = field(default_factory=RunSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    rounds: RoundsSection = field(default_factory=RoundsSection)
    server: ServerSection = field(default_factory=ServerSection)
    policy: PolicySection = field(default_factory=PolicySection)
    wire: WireSection = field(default_factory=WireSection)
    plan: PlanSection = field(default_factory=PlanSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    server_data: ServerDataSection = field(default_factory=ServerDataSection)
    method: MethodSection = field(default_factory=MethodSection)
    clients: tuple[ClientSection, ...] = ()
