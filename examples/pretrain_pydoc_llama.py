"""How the language model in fedsplit/assets/pydoc_llama was made: a tiny Llama, trained on Python's own documentation.

Text: the docstrings of the standard library and the topics of ``help()``, about 2.3 million characters. About 5 % of
the modules are held out whole and decide which state is kept; of the training text, every paragraph that the held-out
modules share is left out, so that nothing is learned and then tested. One CPU thread needs about half an hour::

    python examples/pretrain_pydoc_llama.py --out my_llama

B batch, T tokens of a window, N windows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedsplit.data.stdlib import pydoc_documents
from fedsplit.seeds import seed

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT = 256
HELD_OUT_PERCENT = 5


class Corpus(NamedTuple):
    """Texts by document; ``held_out`` names the modules whose documentation is only measured on."""

    train: list[str]
    valid: list[str]
    held_out: list[str]


def is_held_out(name: str) -> bool:
    """Whole modules, by a hash of the name; reference topics repeat one another and stay in training."""
    digest = hashlib.sha256(name.encode()).digest()
    return not name.startswith("topic:") and int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def corpus() -> Corpus:
    """Split by module, then drop paragraphs that repeat an earlier one: held-out text is the earliest of all."""
    documents = pydoc_documents()
    seen: set[str] = set()
    valid = [_fresh(text, seen) for name, text in documents if is_held_out(name)]
    train = [_fresh(text, seen) for name, text in documents if not is_held_out(name)]
    return Corpus(
        [t for t in train if t], [t for t in valid if t], [name for name, _ in documents if is_held_out(name)]
    )


def _fresh(text: str, seen: set[str]) -> str:
    kept = []
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if key not in seen:
            seen.add(key)
            kept.append(paragraph)
    return "\n\n".join(kept)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text has an encoding, no unknown token is needed. A text starts with ``<s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """0.94 million parameters: 6 layers, width 112, 4 heads that share 2 key-value heads, tied embeddings."""
    torch.manual_seed(seed("pydoc-llama", "weights"))
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=112,
        intermediate_size=240,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All documents one after the other, each ``<s> … </s>``: one long row of token ids."""
    ids: list[int] = []
    for row in tokenizer(texts)["input_ids"]:
        ids += [*row, tokenizer.eos_token_id]
    return torch.tensor(ids)


def batches(ids: torch.Tensor, steps: int, batch: int) -> Iterator[torch.Tensor]:
    """Windows (B, T) in random order, each epoch cut at another offset."""
    generator = torch.Generator().manual_seed(seed("pydoc-llama", "order"))
    windows: list[torch.Tensor] = []
    for _ in range(steps):
        if len(windows) < batch:
            offset = int(torch.randint(CONTEXT, (), generator=generator))
            fresh = ids[offset:].unfold(0, CONTEXT, CONTEXT)
            windows = list(fresh[torch.randperm(len(fresh), generator=generator)])
        yield torch.stack([windows.pop() for _ in range(batch)])


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[float, float]:
    """(perplexity a token, bits a character). Windows overlap by one token: each token is predicted exactly once."""
    model.eval()
    nats, tokens = 0.0, 0
    for row in tokenizer(texts)["input_ids"]:
        for start in range(0, len(row) - 1, CONTEXT - 1):
            ids_BT = torch.tensor([row[start : start + CONTEXT]])
            count = ids_BT.shape[1] - 1
            nats += float(model(input_ids=ids_BT, labels=ids_BT).loss) * count
            tokens += count
    model.train()
    return math.exp(nats / tokens), nats / math.log(2) / sum(map(len, texts))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to a twentieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def pretrain(out: Path, data: Corpus, *, steps: int, batch: int, peak: float, every: int) -> dict[str, float]:
    """Train, keep the state that is best on the held-out modules, and write the model folder to ``out``."""
    tokenizer = train_tokenizer(data.train, 2048)
    model = make_model(len(tokenizer))
    ids = stream(tokenizer, data.train)
    print(f"{len(ids):,} training tokens, {model.num_parameters():,} parameters, {len(data.held_out)} modules held out")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    best: dict[str, float] = {"perplexity": math.inf}
    started = time.perf_counter()
    for step, ids_BT in enumerate(batches(ids, steps, batch), start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, steps, peak)
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % every == 0 or step == steps:
            perplexity, bits = measure(model, tokenizer, data.valid)
            seconds = time.perf_counter() - started
            held_out = f"perplexity {perplexity:.2f}, {bits:.3f} bits a character"
            print(f"step {step}: loss {loss:.3f}, held out: {held_out}, {seconds:.0f} s", flush=True)
            if perplexity < best["perplexity"]:
                best = {"perplexity": perplexity, "bits": bits, "step": step}
                save(out, model, tokenizer, data)
    return best


def save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Corpus) -> None:
    """Write the folder, with the names of the held-out modules: use those where a clean test text is needed."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {"python": platform.python_version(), "held_out_modules": data.held_out}
    (out / "training_data.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=16, help=f"windows of {CONTEXT} tokens a step")
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--every", type=int, default=200, help="steps between measurements")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    options = {"steps": chosen.steps, "batch": chosen.batch, "every": chosen.every}
    print(pretrain(chosen.out, corpus(), peak=chosen.peak, **options))


if __name__ == "__main__":
    main()
