"""One training step of a language model whose middle layers are elsewhere; every bit equals the unsplit step.

The device keeps the embedding and layer 0 (the front), layer 5 and the head (the tail), its text and its labels. The
server runs layers 1 to 4 (the body): hidden states go up and down, gradients come after them. A link in memory stands
for the network; each packet is encoded, checksummed and decoded as it would be over TCP.

    python examples/01_one_split_step.py
"""

from __future__ import annotations

from typing import Any

import torch

from fedsplit.config.run import LoraSection
from fedsplit.exchange.rate import clip_factor
from fedsplit.split.base import open_base
from fedsplit.split.engine import BackwardJob, Engine, ForwardJob
from fedsplit.split.reference import Reference
from fedsplit.split.rows import Rows, pack, unpack
from fedsplit.split.segment import Span, build
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.testing.loopback import Loopback
from fedsplit.train.optim import finite, squares
from fedsplit.train.tokenizer import load_tokenizer
from fedsplit.wire.messages import Backward, Commit, Forward, Grad, Hidden, Prepare

TEXTS = ["Return a list of the words in the string.", "Raise ValueError if the socket is closed."]
LORA, CLIP, RATE = LoraSection(rank=4), 1.0, 0.1

# The model in three parts, each loaded with its own layers only, and the LoRA factors of both sides.
base = open_base("pydoc-llama")
front = build(base, Span(0, 1, embeds=True), task="causal-lm", lora=LORA)
body = build(base, Span(1, 5), task="causal-lm", lora=LORA)
tail = build(base, Span(5, 6, heads=True), task="causal-lm", lora=LORA)
ours, theirs = front.new_params(0) | tail.new_params(0), body.new_params(0)
for factor in (ours | theirs).values():
    factor.data += 0.05 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(0))  # B starts at zero

# The data: token ids padded to one width, and a loss at every token but the first of a row.
tokenizer = load_tokenizer(base.folder)
ids = [tokenizer.encode(text).ids for text in TEXTS]
rows, labels = Rows.of(ids), Rows.of(ids, pad=-100).ids_BT
count = rows.tokens - len(TEXTS)
assert labels is not None

# For comparison: the same step by stock transformers and peft, nothing split.
whole = Reference(base, "causal-lm", LORA, torch.float32, torch.device("cpu"), 0)
unsplit_loss, unsplit_grads = whole.step(rows, labels, count, ours | theirs)

link, engine = Loopback(), Engine(body, stash_bytes=100_000_000)
device, server = link.dealer("pi"), link.gateway
where: dict[str, Any] = {"client": "pi", "round": 0, "era": 0, "step": 0, "cut": (1, 5)}
key = ("pi", 0, 0, 0, 0)  # client, round, era, step, micro-batch


def arrived(packet: Any) -> Any:
    """What has just come in, at either end."""
    assert packet is not None, "nothing came"
    return getattr(packet, "packet", packet)


# Device: up to the cut, and off. What the server learns beside the hidden states is how long the rows are.
h1 = front.run(rows, None, ours)
forward = Forward(**where, lengths=rows.lengths, starts=rows.starts, width=rows.width, label_tokens=count)
device.send(forward, {"h": to_wire(pack(h1.detach(), rows))})

# Server: the body's forward pass.
got = arrived(server.receive(1.0))
shape = Rows(None, got.message.lengths, got.message.starts, got.message.width)
job = ForwardJob(key=key, rows=shape, h_ND=from_wire(got.tensors["h"]), layers=(1, 5), params=theirs)
server.send(device.identity, Hidden(**where, label_tokens=count), {"h": to_wire(engine.forward([job])[0])})

# Device: the tail, the loss, and the gradient back.
h2 = unpack(from_wire(arrived(device.receive(1.0)).tensors["h"]), rows).requires_grad_()
loss = tail.loss(rows, tail.run(rows, h2, ours), labels, count, ours)
loss.backward()
assert h2.grad is not None
device.send(Backward(**where), {"g": to_wire(pack(h2.grad, rows))})

# Server: the body's backward pass, which leaves gradients on the body's factors.
g2 = from_wire(arrived(server.receive(1.0)).tensors["g"])
g1 = engine.backward([BackwardJob(key=key, g_ND=g2)])[0]
assert g1 is not None
server.send(device.identity, Grad(**where), {"g": to_wire(g1)})

# Device: the front's backward pass; ready to step.
h1.backward(unpack(from_wire(arrived(device.receive(1.0)).tensors["g"]), rows))
device.send(Prepare(**where, squares=squares(ours), finite=finite(ours), examples=len(TEXTS)), {})

# Server: one decision for both sides; clipping knows the norm of all gradients together.
ready = arrived(server.receive(1.0)).message
assert ready.finite
assert finite(theirs)
clip = clip_factor([*ready.squares, *squares(theirs)], CLIP)
server.send(device.identity, Commit(**where, clip=clip, rate=RATE), {})

# Both sides: one step of plain gradient descent.
commit = arrived(device.receive(1.0)).message
equal = [
    torch.equal(factor.grad, unsplit_grads[name]) for name, factor in (ours | theirs).items() if factor.grad is not None
]
for factor in (ours | theirs).values():
    assert factor.grad is not None
    factor.data -= commit.rate * commit.clip * factor.grad

print(f"loss, split    {loss.item():.8f}")
print(f"loss, unsplit  {unsplit_loss.item():.8f}  equal in every bit: {torch.equal(loss.detach(), unsplit_loss)}")
print(f"gradients      {sum(equal)} of {len(unsplit_grads)} equal in every bit, clipped to {clip:.3f} of their length")
print(f"on the wire    {device.up_bytes:,} bytes up, {device.down_bytes:,} bytes down")
