"""The tokenizer of a model folder as transformers loads it.

Some model classes rebuild their tokenizer from its vocabulary, so that AutoTokenizer gives other ids than the bare
``tokenizer.json``; where transformers is installed its reading is the right one.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from fedsplit.data.tokenizer import Tokenizer
from fedsplit.errors import ConfigError


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """AutoTokenizer's reading of a local model folder; nothing is downloaded.

    :raises ConfigError: if there is no tokenizer, it is damaged, or it is one without a ``tokenizers`` backend.
    """
    try:
        auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        fix = "the folder needs tokenizer.json or the tokenizer files of its model class"
        raise ConfigError(f"no tokenizer could be loaded: {reason}; {fix}", str(folder)) from None
    backend = getattr(auto, "backend_tokenizer", None)
    if backend is None:
        fix = "save it as tokenizer.json (a fast tokenizer)"
        raise ConfigError(f"found {type(auto).__name__}, which has no tokenizers backend; {fix}", str(folder))
    special = {role: str(text) for role, text in auto.special_tokens_map.items()}
    template = auto.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return Tokenizer(
        backend,
        special=special,
        side="left" if auto.padding_side == "left" else "right",
        template=template,
        uses_types="token_type_ids" in auto.model_input_names,
    )
