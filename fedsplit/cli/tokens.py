"""A model's tokenizer by the name a person gives, without torch wherever the folder allows it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fedsplit import assets
from fedsplit.data import tokenizer
from fedsplit.errors import ConfigError, MissingExtra, Problem


def model_folder(name: str) -> Path:
    """The folder of a model that ships, or that lies on this machine.

    :raises ConfigError: if there is no such folder.
    """
    if name in assets.NAMES:
        return assets.path(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    expected = f"a local model folder, {' or '.join(assets.NAMES)}"
    raise ConfigError([Problem("model.path", f'"{name}"', expected, "download it first and name its folder")])


def tokenizer_of(name: str) -> tokenizer.Tokenizer:
    """The tokenizer of a model.

    :raises ConfigError: if there is none.
    :raises MissingExtra: if only transformers can load it, and is not installed.
    """
    folder = model_folder(name)
    if (folder / "tokenizer.json").is_file():
        return tokenizer.load(folder)
    try:
        module = import_module("fedsplit.train.tokenizer")
    except ImportError:
        raise MissingExtra("transformers, which this tokenizer needs,", "torch") from None
    loaded: tokenizer.Tokenizer = module.load_tokenizer(folder)
    return loaded
