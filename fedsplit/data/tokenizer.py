"""Text to token ids with the ``tokenizers`` library alone, for devices where torch and transformers are absent.

``Encode`` is what the rest of fedsplit asks of a tokenizer; ``Tokenizer`` is the one implementation, made here from a
model folder's ``tokenizer.json``, and in ``fedsplit.train.tokenizer`` from what transformers' AutoTokenizer loads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from fedsplit.data import chat
from fedsplit.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

Side = Literal["left", "right"]


class Encoded(NamedTuple):
    """Token ids, their segment (0 or 1), their characters (start, end), and how many tokens it was before a cut."""

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]]
    full: int


class Encode(Protocol):
    """What fedsplit asks of a tokenizer."""

    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def side(self) -> Side: ...
    @property
    def uses_types(self) -> bool: ...
    @property
    def has_chat(self) -> bool: ...

    def encode(
        self, text: str, *, pair: str | None = None, max_length: int | None = None, special: bool = True
    ) -> Encoded: ...

    def render(self, messages: Sequence[chat.Message], answer_next: bool = False) -> str: ...

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str: ...


class Tokenizer:
    """A ``tokenizers.Tokenizer`` with the settings that a model folder keeps beside it.

    ``special``: texts of the special tokens by role (``bos_token``, ``eos_token``, …). ``uses_types``: the model was
    trained with segment ids. ``side``: where transformers pads.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: Mapping[str, str],
        side: Side = "right",
        template: str | None = None,
        uses_types: bool = False,
    ) -> None:
        self._backend, self._special, self._template = backend, dict(special), template
        # Some models ship with padding or truncation switched on; both are decided per batch here.
        backend.no_padding()
        backend.no_truncation()
        self.side: Side = side
        self.uses_types = uses_types

    def _id(self, role: str) -> int | None:
        text = self._special.get(role)
        return self._backend.token_to_id(text) if text else None

    @cached_property
    def bos_id(self) -> int | None:
        return self._id("bos_token")

    @cached_property
    def eos_id(self) -> int | None:
        return self._id("eos_token")

    @cached_property
    def pad_id(self) -> int:
        """A token to fill up with; it is masked, so any id of the vocabulary will do where there is none."""
        found = (self._id(role) for role in ("pad_token", "eos_token", "unk_token"))
        return next((one for one in found if one is not None), 0)

    @property
    def vocabulary(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def has_chat(self) -> bool:
        return self._template is not None

    def encode(
        self, text: str, *, pair: str | None = None, max_length: int | None = None, special: bool = True
    ) -> Encoded:
        """Tokens of a text or a pair, cut to ``max_length``; special tokens survive the cut.

        Of a pair the longer text is cut first. ``special=False`` leaves out what the model wants around a text.
        """
        encoding = self._backend.encode(text, pair, add_special_tokens=special)
        full = len(encoding.ids)
        if max_length is not None and full > max_length:
            encoding = self._cut(text, pair, max_length, special)
        return Encoded(encoding.ids, encoding.type_ids, encoding.offsets, full)

    def _cut(self, text: str, pair: str | None, max_length: int, special: bool) -> tokenizers.Encoding:
        first = self._backend.encode(text, add_special_tokens=False)
        second = None if pair is None else self._backend.encode(pair, add_special_tokens=False)
        around = self._backend.num_special_tokens_to_add(pair is not None) if special else 0
        lengths = _longest_first(len(first), 0 if second is None else len(second), max(0, max_length - around))
        first.truncate(lengths[0])
        if second is not None:
            second.truncate(lengths[1])
        return self._backend.post_process(first, second, special)

    def render(self, messages: Sequence[chat.Message], answer_next: bool = False) -> str:
        """A conversation as the model's chat template writes it, or plainly where it has none.

        :raises ConfigError: if the template is broken or refuses the conversation.
        """
        if self._template is None:
            return chat.plain(messages, answer_next, self._special.get("eos_token", ""))
        return self._renderer(messages, answer_next)

    @cached_property
    def _renderer(self) -> chat.Render:
        return chat.from_template(self._template or "", self._special)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of the ids; ``special`` keeps the special tokens visible."""
        return self._backend.decode(list(ids), skip_special_tokens=not special)

    def token(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""
        return self._backend.id_to_token(token_id) or f"<{token_id}>"


def _longest_first(first: int, second: int, total: int) -> tuple[int, int]:
    """How much of each text stays when the longer one always loses the next token."""
    if first + second <= total:
        return first, second
    # The same arithmetic as the tokenizers library, whose rounding favours the longer text, of equals the second.
    short, half = min(first, second), total // 2
    if short > total - short:
        return (total - half, half) if first > second else (half, total - half)
    return (total - second, second) if second < first else (first, total - first)


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder, from ``tokenizer.json`` and the settings beside it.

    :raises ConfigError: if there is no ``tokenizer.json``, or it is damaged.
    """
    import tokenizers  # here: who trains on rows that are tokens already need not load it

    model = Path(folder)
    file = model / "tokenizer.json"
    if not file.is_file():
        fix = "save it with AutoTokenizer.from_pretrained(…).save_pretrained(…), or install fedsplit[torch]"
        raise ConfigError(f"there is no tokenizer.json; {fix}", str(model))
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises plain Exception.
        raise ConfigError(f"tokenizer.json cannot be read: {error}", str(model)) from None
    config, named = _json(model / "tokenizer_config.json"), _json(model / "special_tokens_map.json")
    special = {role: text for role, text in _special(named | config).items() if backend.token_to_id(text) is not None}
    side = config.get("padding_side")
    is_llama = str(config.get("tokenizer_class", "")).removesuffix("Fast") == "LlamaTokenizer"
    if is_llama:
        _as_llama(backend, config)
    return Tokenizer(
        backend,
        special=special,
        side=side if side in ("left", "right") else "left" if is_llama else "right",
        template=_template(model, config),
        uses_types=int(_json(model / "config.json").get("type_vocab_size") or 0) > 1,
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", str(file)) from None
    return value if isinstance(value, dict) else {}


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by role; old files write them as ``{"content": …}``."""
    found = {}
    for role in ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        value = config.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            found[role] = text
    return found


def _template(model: Path, config: Mapping[str, Any]) -> str | None:
    file = model / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        value = next((one.get("template") for one in value if one.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _as_llama(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """transformers 5 rebuilds tokenizers of this class with a pre-tokenizer in place of the normalizer.

    The two differ where special tokens or spaces stand at the beginning and on characters that the vocabulary lacks,
    and only one of them is what AutoTokenizer gives.
    """
    from tokenizers import pre_tokenizers

    backend.model.unk_token = None
    scheme = "never" if config.get("add_prefix_space") is False else "always" if config.get("legacy") else "first"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
