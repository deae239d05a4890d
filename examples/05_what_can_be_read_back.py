"""How much of a text can the operator read from hidden states? Measured, by a simple attack, at every cut.

The operator knows the base model and, after each round, a device's front. So it can run the front on public text of its
own, fit a linear map from hidden states back to tokens in closed form, and read other people's hidden states with it.
This is the least one has to expect: no training, seconds of one CPU. Better attacks exist (docs/privacy.md).

    python examples/05_what_can_be_read_back.py                   # every cut of the model that ships
    python examples/05_what_can_be_read_back.py minilm 1 3        # another model, after 1 and after 3 layers

Legend: N tokens of all texts, D model width, V vocabulary.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from fedsplit.data.stdlib import examples
from fedsplit.split.base import open_base
from fedsplit.split.rows import Rows, pack
from fedsplit.split.segment import Span, build
from fedsplit.train.tokenizer import load_tokenizer

PUBLIC, PRIVATE = 600, 60  # passages the operator learns the map from, and passages that it then reads

base = open_base(sys.argv[1] if len(sys.argv) > 1 else "pydoc-llama")
tokenizer, vocabulary = load_tokenizer(base.folder), int(base.config.vocab_size)


def batches(texts: list[str]) -> list[Rows]:
    """Padded token ids, 32 texts at a time."""
    ids = [tokenizer.encode(text, max_length=64).ids for text in texts]
    return [Rows.of(ids[at : at + 32]) for at in range(0, len(ids), 32)]


def sent(c1: int, rows: list[Rows]) -> tuple[Tensor, Tensor]:
    """(N, D) hidden states as they leave a device that holds the embedding and c1 layers, and the (N,) true tokens."""
    front = build(base, Span(0, c1, embeds=True), task=next(iter(base.family.heads)))
    with torch.no_grad():
        hidden = [pack(front.run(batch, None, {}), batch) for batch in rows]
    return torch.cat(hidden), torch.cat([pack(batch.ids_BT, batch) for batch in rows if batch.ids_BT is not None])


def centred(h_ND: Tensor, mean_D: Tensor) -> Tensor:
    """With a constant column, so that the linear map has an offset."""
    return torch.cat([h_ND - mean_D, torch.ones(len(h_ND), 1)], 1)


def shares(c1: int) -> tuple[float, float]:
    """Shares of private tokens that are read: through the nearest embedding, and by a classifier of tokens."""
    (h_ND, ids_N), (x_ND, true_N) = sent(c1, public), sent(c1, private)
    mean_D = h_ND.mean(0)
    known, asked = centred(h_ND, mean_D), centred(x_ND, mean_D)
    gram = known.T @ known
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))  # ridge
    to_embedding = torch.linalg.solve(gram, known.T @ embedding_VD[ids_N])
    nearest_N = (asked @ to_embedding @ embedding_VD.T - squares_V / 2).argmax(1)
    sums = torch.zeros(known.shape[1], vocabulary).index_add_(1, ids_N, known.T.contiguous())
    frequency = torch.bincount(ids_N, minlength=vocabulary).clamp(min=1)
    classes_N = (asked @ torch.linalg.solve(gram, sums) / frequency.sqrt()).argmax(1)
    return float((nearest_N == true_N).float().mean()), float((classes_N == true_N).float().mean())


public = batches([passage.text for passage in examples("train")[:PUBLIC]])
private = batches([passage.text for passage in examples("test")[:PRIVATE]])
# What every token of the vocabulary looks like before the first layer: the operator has the base model.
embedding_VD, _ = sent(0, [Rows.of([list(range(at, min(at + 32, vocabulary)))]) for at in range(0, vocabulary, 32)])
squares_V = embedding_VD.square().sum(1)

print(f"{base.config.model_type}, {base.num_layers} layers; {PRIVATE} passages that the operator has never seen")
print("layers on the device   tokens read back")
for c1 in [int(word) for word in sys.argv[2:]] or range(base.num_layers + 1):
    nearest, classes = shares(c1)
    print(f"{c1:20}   {max(nearest, classes):4.0%}  (nearest embedding {nearest:.0%}, classifier {classes:.0%})")
