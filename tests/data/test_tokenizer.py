"""The tokenizer without transformers gives the very ids that transformers gives, on real models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsplit import assets
from fedsplit.data import tokenizer
from fedsplit.data.tokenizer import Tokenizer, _longest_first
from fedsplit.errors import ConfigError

transformers = pytest.importorskip("transformers", reason="pip install 'fedsplit[torch]'")

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    " leading and  double spaces ",
    "line\nbreak\ttab\r\n",
    "Ünïcode – 漢字 🙂 e\u0301",
    "<s> special </s> words [SEP] <|end_story|>",
    "a",
    "",
    "x" * 300,
]
FOLDERS = ("stories260k", "tinystories656k", "minilm", "pydoc-llama")


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if name == "minilm":
            return request.getfixturevalue("minilm")  # type: ignore[no-any-return]
        if name == "pydoc-llama":
            found = assets.path(name)
            if not (found / "tokenizer.json").is_file():
                pytest.skip("the shipped model has no tokenizer yet")
            return found
        return request.getfixturevalue("shared") / "models" / name  # type: ignore[no-any-return]

    return find


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request: pytest.FixtureRequest, folder: Callable[[str], Path]) -> tuple[Tokenizer, Tokenizer, Any]:
    from fedsplit.train.tokenizer import load_tokenizer

    found = folder(request.param)
    return tokenizer.load(found), load_tokenizer(found), transformers.AutoTokenizer.from_pretrained(str(found))


def test_ids_agree_with_transformers(pair: tuple[Tokenizer, Tokenizer, Any]) -> None:
    edge, loaded, auto = pair
    for text in TEXTS:
        wanted = auto(text)["input_ids"]
        assert edge.encode(text).ids == wanted, text
        assert loaded.encode(text).ids == wanted, text
        plain = auto(text, add_special_tokens=False)["input_ids"]
        assert edge.encode(text, special=False).ids == plain


def test_pairs_and_cuts_agree_with_transformers(pair: tuple[Tokenizer, Tokenizer, Any]) -> None:
    edge, loaded, auto = pair
    for one in (edge, loaded):
        for first, second in [("a b c d e f g h", "i j"), ("a", "b c d e f g h i j k l"), (TEXTS[0], TEXTS[0])]:
            wanted = auto(first, second, truncation=True, max_length=12)
            found = one.encode(first, pair=second, max_length=12)
            assert found.ids == wanted["input_ids"]
            assert found.full == len(auto(first, second)["input_ids"])
            if one.uses_types:
                assert found.types == wanted["token_type_ids"]
        assert one.encode(TEXTS[0], max_length=5).ids == auto(TEXTS[0], truncation=True, max_length=5)["input_ids"]


def test_settings_agree_with_transformers(pair: tuple[Tokenizer, Tokenizer, Any]) -> None:
    edge, loaded, auto = pair
    for one in (edge, loaded):
        assert (one.bos_id, one.eos_id) == (auto.bos_token_id, auto.eos_token_id)
        assert one.pad_id == auto.pad_token_id
        assert one.side == auto.padding_side
        assert one.uses_types == ("token_type_ids" in auto.model_input_names)
        assert not one.has_chat
        ids = one.encode(TEXTS[0]).ids
        assert one.decode(ids, special=True) == auto.decode(ids)
        assert one.decode(ids) == auto.decode(ids, skip_special_tokens=True)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{%- if messages[0].role == 'system' -%}\n  {%- set head = messages[0].content | trim -%}\n"
    "  {%- set messages = messages[1:] -%}\n{%- endif -%}\n"
    "{%- for message in messages -%}\n  {%- if message.role == 'user' -%}\n"
    "    {{ bos_token }}[INST] {{ head | tojson if head is defined and loop.first }}{{ message.content.strip() }} "
    "[/INST]\n"
    "  {%- else -%}\n    {% generation %} {{ message.content }} {{ eos_token }}{% endgeneration %}\n"
    "  {%- endif -%}\n  {%- if loop.index > 9 %}{% break %}{% endif -%}\n{%- endfor -%}"
)
TALK = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]


@pytest.mark.parametrize("template", [CHATML, LLAMA2])
def test_chat_templates_render_as_in_transformers(folder: Callable[[str], Path], tmp_path: Path, template: str) -> None:
    source = folder("stories260k")
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(source / name, tmp_path / name)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    edge, auto = tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert edge.has_chat
    for count in (2, 3, 5):
        for answer_next in (False, True):
            wanted = auto.apply_chat_template(TALK[:count], tokenize=False, add_generation_prompt=answer_next)
            assert edge.render(TALK[:count], answer_next) == wanted


def test_errors_name_the_folder(tmp_path: Path) -> None:
    from fedsplit.train.tokenizer import load_tokenizer

    with pytest.raises(ConfigError, match=r"there is no tokenizer\.json"):
        tokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        tokenizer.load(tmp_path)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
@settings(deadline=None)
def test_the_longer_text_is_cut_first(first: int, second: int, total: int) -> None:
    a, b = first, second
    while a + b > total:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    found = _longest_first(first, second, total)
    assert sum(found) == min(total, first + second)
    assert sorted(found) == sorted((a, b))
