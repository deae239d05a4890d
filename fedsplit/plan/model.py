"""A model in numbers: sizes, parameter counts, projections, and what backprop keeps of a layer.

The counts are exact, and tests compare them with the real models of every family. Shape letters: D hidden,
F feed-forward, V vocabulary, T tokens of one example, R rank, M out, N in.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Linear(Struct, frozen=True, array_like=True):
    """One projection of a layer: module path inside the layer, W is (out, inp).

    ``reads`` names the tensor it multiplies: projections that read the same tensor share one copy of it when LoRA has
    to keep it for backward; ``attended`` (the attention's output) is kept anyway.
    """

    path: str
    out: int
    inp: int
    reads: str


class Kept(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one frozen layer keeps for backward, per token, in elements (see ``ModelCard.kept_elements``).

    ``ffn``: tensors of width F; ``copies``: tensors of width D that the fused attention copies out of a joint
    projection; ``norms``: normalisations of width D, which with ``upcast`` (RMSNorm) are float32 in half precision;
    ``statistics``: scalars they keep; ``qk_norm``: query and key are normalised too; ``masked``: an additive mask is
    kept when rows are padded; ``capped``: attention scores go through tanh (Gemma 2), which no fused attention does.
    """

    ffn: float
    copies: float = 0.0
    norms: int = 2
    upcast: bool = False
    statistics: int = 2
    qk_norm: bool = False
    masked: bool = True
    capped: bool = False


class ModelCard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model in numbers. All layers are alike in every supported family.

    ``tokens``: fixed tokens of an example (images), 0 for text. ``head_params``: parameters of the task head that are
    not shared with the embedding; ``head_macs``: multiplications of the head for one token (causal-lm) or one example.
    """

    family: str
    task: str
    num_layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_tokens: int
    tokens: int
    tied: bool
    num_labels: int
    linears: tuple[Linear, ...]
    default_targets: tuple[str, ...]
    layer_prefix: str
    layer_params: int
    embedding_params: int
    embedding_macs: int
    """Multiplications of one token's embedding: 0 for a look-up, a patch projection for images."""
    norm_params: int
    """Final norm after the last layer."""
    head_params: int
    head_macs: int
    kept: Kept
    head_frozen: int = 0
    """Parameters of the head that never train: BERT's pooler, where the checkpoint has one."""
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    stored_bits: int = 32
    kinds: tuple[str, ...] = ()
    """How layers attend, where not all of them attend alike; empty: they do."""

    @property
    def attention_width(self) -> int:
        """Query heads times head size; differs from ``hidden`` in Qwen3 and Gemma."""
        return self.heads * self.head_dim

    @property
    def params(self) -> int:
        """All parameters, those shared by embedding and head once."""
        layers = self.num_layers * self.layer_params
        return self.embedding_params + layers + self.norm_params + self.head_params

    @property
    def head_trained(self) -> int:
        """Parameters of the task head that train, unless ``model.head`` freezes it."""
        return self.head_params - self.head_frozen

    @property
    def macs(self) -> int:
        """Multiplications of one token in the projections of one layer."""
        return sum(linear.out * linear.inp for linear in self.linears)

    @property
    def reads_tokens(self) -> bool:
        """True for text: token ids can be read back from embeddings by nearest neighbour."""
        return self.task != "image-classification"

    def kept_elements(self, tokens: int, *, half: bool = False, padded: bool = True, training: bool = True) -> float:
        """Elements that backprop keeps for one token of one frozen layer, T = ``tokens`` in the row.

        Counted with saved-tensor hooks on stock transformers 5.23 with sdpa on CPU: query, key, value and the
        attention's output; the inputs of norms and activation functions; a log-sum-exp a head; with padding, key and
        value repeated to all heads and one float mask. Attention dropout switches sdpa to the explicit form, which
        keeps three T-wide tensors a head. Capped scores are always explicit: tanh and the float32 softmax, then its
        16-bit copy or dropout's mask and product. ``half``: elements of a 16-bit model, where float32 counts twice.
        """
        kept, wide = self.kept, 2 if half else 1
        width, kv = self.attention_width, self.kv_heads * self.head_dim
        total = kept.ffn * self.ffn + kept.copies * self.hidden
        total += kept.norms * (self.hidden * (wide if kept.upcast else 1) + kept.statistics / 2 * wide)
        total += 2 * width + 2 * (width if padded or kept.capped else kv)
        if kept.qk_norm:
            total += (self.heads + self.kv_heads) * (self.head_dim + 1) * wide
        if training and self.hidden_dropout:
            total += 2 * self.hidden
        if kept.capped:
            explicit = 3 + wide if training and self.attention_dropout else 2 * wide
            return total + explicit * self.heads * tokens - width
        if training and self.attention_dropout:
            return total + 3 * self.heads * tokens - width - kept.copies * self.hidden
        return total + self.heads * wide + (tokens if padded and kept.masked else 0)

    def adapted(self, targets: Sequence[str], layer: int) -> tuple[Linear, ...]:
        """The projections of one layer that ``targets`` select by peft's rule: the whole name or its end.

        Empty targets: the attention's query and value; ``all-linear``: every projection of the layer.
        """
        chosen = tuple(targets) or self.default_targets
        if chosen == ("all-linear",):
            return self.linears
        names = [(f"{self.layer_prefix}.{layer}.{linear.path}", linear) for linear in self.linears]
        return tuple(lin for name, lin in names if any(name == t or name.endswith(f".{t}") for t in chosen))


def lora_params(linears: Sequence[Linear], rank: int) -> int:
    """Scalars of the factors A (R, N) and B (M, R) of these projections."""
    return sum(rank * (linear.out + linear.inp) for linear in linears)
