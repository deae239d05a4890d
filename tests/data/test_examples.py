"""Where the loss is, what is cut, and how batches lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit.config.load import loads
from fedsplit.data import chat
from fedsplit.data.batches import collate, order, split
from fedsplit.data.dataset import open_dataset
from fedsplit.data.examples import IGNORED, Example, Examples, conversation, tokenise
from fedsplit.data.rows import Row
from fedsplit.data.tokenizer import Encoded, Side
from fedsplit.errors import DataError

BOS, EOS, PAD = 1, 2, 0


class Letters:
    """A tokenizer with one token a character: what every id stands for can be read off."""

    eos_id: int | None = EOS
    pad_id = PAD
    side: Side = "right"
    uses_types = False
    has_chat = False
    template = ""

    def encode(
        self, text: str, *, pair: str | None = None, max_length: int | None = None, special: bool = True
    ) -> Encoded:
        ids = [BOS] * special + [ord(c) for c in text + (pair or "")]
        offsets = [(0, 0)] * special + [(i, i + 1) for i in range(len(text))]
        return Encoded(ids[:max_length], [0] * len(ids), offsets, len(ids))

    def render(self, messages: Sequence[chat.Message], answer_next: bool = False) -> str:
        return chat.plain(messages, answer_next, "$")

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return "".join(chr(i) for i in ids if i > 2)


def row(**parts: Any) -> Row:
    return Row(file="rows.jsonl", line=1, **parts)


def learned(example: Example) -> str:
    assert isinstance(example.labels, tuple)
    return "".join("." if one == IGNORED else "$" if one == EOS else chr(one) for one in example.labels)


def test_plain_text_is_learned_from_its_second_token_to_its_end() -> None:
    examples, report = tokenise([row(text="abc")], Letters(), 10, "causal-lm")
    assert examples[0].ids == (BOS, 97, 98, 99, EOS)
    assert learned(examples[0]) == ".abc$"
    assert report.clean


def test_a_prompt_is_not_learned() -> None:
    examples, _ = tokenise([row(text="ab", completion="xy")], Letters(), 10, "causal-lm")
    assert learned(examples[0]) == "....xy$"
    assert examples[0].ids == (BOS, 97, 98, 10, 120, 121, EOS)
    examples, _ = tokenise([row(text="ab ", completion="xy")], Letters(), 10, "causal-lm")
    assert examples[0].ids == (BOS, 97, 98, 32, 120, 121, EOS)


def test_no_end_token_where_the_tokenizer_has_none() -> None:
    letters = Letters()
    letters.eos_id = None
    examples, _ = tokenise([row(text="ab")], letters, 10, "causal-lm")
    assert learned(examples[0]) == ".ab"


def test_conversations_learn_the_answers_only() -> None:
    talk = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
    )
    ids, labels = conversation(row(messages=talk), Letters())
    text = "System: s\nUser: q1\nAssistant: a1$\nUser: q2\nAssistant: a2$\n"
    assert Letters().decode(ids) == text
    shown = "".join("." if one == IGNORED else chr(one) for one in labels[1:])
    assert [part for part in shown.split(".") if part] == [" a1$\n", " a2$\n"]
    assert shown.index(" a1") == text.index(" a1")


def test_a_template_that_rewrites_earlier_turns() -> None:
    """As models do that drop past thoughts: earlier answers are found by their words."""

    def render(messages: Sequence[chat.Message], answer_next: bool) -> str:
        last = len(messages) - 1
        shown = [f"[{'!' if i == last else ''}{one['content']}]" for i, one in enumerate(messages)]
        return "".join(shown) + ("[!" if answer_next else "")

    talk = [{"role": role, "content": text} for role, text in
            [("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")]]  # fmt: skip
    text, spans = chat.answers(talk, render)
    assert text == "[q][one][r][!two]"
    assert [text[slice(*span)] for span in spans] == ["one", "two"]


def test_truncation_is_counted() -> None:
    rows = [row(text="abcdefgh"), row(text="ab"), row(text="abcdef", completion="x")]
    examples, report = tokenise(rows, Letters(), 5, "causal-lm")
    assert [len(one.ids) for one in examples] == [5, 4]
    assert (report.rows, report.examples, report.cut, report.tokens_cut, report.dropped) == (3, 2, 1, 5, 1)
    assert report.longest == 10
    assert "1 of 3 rows (33.3 %) are longer than 5 tokens: 5 tokens cut off" in str(report)
    assert "1 rows dropped: their prompt alone fills 5 tokens" in str(report)
    assert "max_length" in str(report)


def test_long_texts_can_be_split_instead() -> None:
    examples, report = tokenise([row(text="abcdefgh")], Letters(), 4, "causal-lm", long="split")
    assert [learned(one) for one in examples] == [".abc", ".efg", ".$"]
    assert report.clean
    assert report.tokens == 10


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no row is left to learn from: .*prompt alone fills"):
        tokenise([row(text="abcdef", completion="x")], Letters(), 5, "causal-lm")


def test_labelled_rows() -> None:
    rows = [row(text="ab", label=1), row(text="abcdef", pair="gh", label=0)]
    examples, report = tokenise(rows, Letters(), 5, "classification")
    assert [one.labels for one in examples] == [1, 0]
    assert (report.cut, report.tokens_cut) == (1, 4)
    examples, _ = tokenise([row(text="ab", label=0.5)], Letters(), 5, "regression")
    assert examples[0].labels == 0.5


def test_subsets_equal_the_examples_they_take() -> None:
    rows = [row(text="x" * (1 + i % 7), completion="y" * (1 + i % 3)) for i in range(20)]
    examples, _ = tokenise(rows, Letters(), 12, "causal-lm")
    chosen = np.array([3, 3, 0, 19, 7])
    assert list(examples.subset(chosen)) == examples.take(chosen)
    assert list(examples[5:9]) == [examples[i] for i in range(5, 9)]
    assert examples[-1] == examples[19]
    with pytest.raises(IndexError):
        examples[20]
    assert isinstance(examples[:0], Examples)
    assert len(examples[:0]) == 0


def test_memory_is_a_few_bytes_a_token() -> None:
    examples, _ = tokenise([row(text="x" * 98)] * 100, Letters(), 100, "causal-lm")
    held = examples.ids.nbytes + examples.labels.nbytes + examples.bounds.nbytes
    assert held <= 100 * 100 * 8 + 101 * 8


# ---- batches -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(0, 30), st.integers(0, 6), st.integers(0, 6), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_rounds_continue_each_other(n: int, first: int, some: int, more: int, batch: int) -> None:
    whole = order(n, 7, "pi", first, some + more, batch)
    pieces = [order(n, 7, "pi", first, some, batch), order(n, 7, "pi", first + some, more, batch)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert whole.shape == (some + more, batch)


@given(st.integers(1, 40), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_every_epoch_uses_every_example_once(n: int, batch: int) -> None:
    flat = order(n, 3, "pi", 0, 3 * n, batch).ravel()
    epochs = [flat[i * n : (i + 1) * n] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    if n > 8:
        assert epochs[0].tolist() != epochs[1].tolist()


def test_orders_differ_by_client_and_seed_and_are_frozen() -> None:
    assert not np.array_equal(order(100, 0, "a", 0, 5, 4), order(100, 0, "b", 0, 5, 4))
    assert not np.array_equal(order(100, 0, "a", 0, 5, 4), order(100, 1, "a", 0, 5, 4))
    # The numbers themselves: another machine or NumPy must not change a run.
    assert order(10, 0, "a", 0, 2, 6).tolist() == GOLDEN_ORDER
    with pytest.raises(DataError, match="no example"):
        order(0, 0, "a", 0, 1, 1)


GOLDEN_ORDER = [[7, 0, 9, 5, 2, 3], [4, 8, 6, 1, 3, 9]]


@given(st.integers(0, 60), st.floats(0, 0.999))
@settings(max_examples=80, deadline=None)
def test_split_is_a_partition(n: int, fraction: float) -> None:
    train, held_out = split(n, fraction, 5)
    assert sorted([*train, *held_out]) == list(range(n))
    assert np.array_equal(train, split(n, fraction, 5)[0])
    if n >= 2 and fraction > 0:
        assert len(held_out) >= 1
        assert len(train) >= 1
        assert abs(len(held_out) - n * fraction) <= 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate(side: Side) -> None:
    examples, _ = tokenise([row(text="ab", completion="x"), row(text="a")], Letters(), 10, "causal-lm")
    batch = collate(examples.take([0, 1]), PAD, side)
    assert batch.ids_BT is not None
    assert (batch.width, batch.lengths) == (6, (6, 3))
    assert batch.starts == ((0, 3) if side == "left" else (0, 0))
    assert batch.label_tokens == 2 + 2
    for b, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        assert tuple(batch.ids_BT[b, start : start + length]) == examples[b].ids
        assert tuple(batch.labels[b, start : start + length]) == examples[b].labels
    outside = np.ones((2, 6), bool)
    for b, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        outside[b, start : start + length] = False
    assert (batch.ids_BT[outside] == PAD).all()
    assert (batch.labels[outside] == IGNORED).all()
    # Nothing predicts a row's first token, so shifting the labels loses none.
    assert int((batch.labels[:, 1:] != IGNORED).sum()) == batch.label_tokens


def test_collate_classes_and_numbers() -> None:
    batch = collate([Example((1, 2), 3, types=(0, 1)), Example((4,), 0, types=(0,))])
    assert batch.labels.dtype == np.int64
    assert batch.labels.tolist() == [3, 0]
    assert batch.types_BT is not None
    assert batch.types_BT.tolist() == [[0, 1], [0, 0]]
    assert batch.label_tokens == 2
    batch = collate([Example((1,), 0.5), Example((1,), 2.0)])
    assert batch.labels.dtype == np.float32


# ---- on real data --------------------------------------------------------------------------------------------------


def test_a_client_opens_its_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(40)))
    run = loads('[model]\npath = "x"\n[data]\neval_fraction = 0.25\n')
    data = open_dataset(file, run, Letters())
    assert (len(data.train), len(data.held_out)) == (30, 10)
    assert data.summary.train_examples == 30
    assert data.summary.tokens_max == 9
    seen = {example.ids for part in (data.train, data.held_out) for example in part}
    assert len(seen) == 40
    assert len(open_dataset(file, run, Letters(), fraction=1.0).held_out) == 40


def test_real_rows_decode_to_what_was_read(shared: Path) -> None:
    from fedsplit.data import tokenizer

    encode = tokenizer.load(shared / "models" / "stories260k")
    run = loads('[model]\npath = "x"\nmax_length = 400\n')
    data = open_dataset(shared / "e2e_nlg" / "test.jsonl.gz", run, encode, fraction=1.0)
    assert data.report.clean
    example = data.held_out[0]
    assert isinstance(example.labels, tuple)
    answer = encode.decode([one for one in example.labels if one != IGNORED])
    assert (
        answer
        == "The coffee shop Blue Spice is based near Crowne Plaza Hotel and has a high customer rating of 5 out of 5."
    )
    assert encode.decode(example.ids).startswith("name[Blue Spice], eatType[coffee shop]")
    assert example.ids[-1] == encode.eos_id
