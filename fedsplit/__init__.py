"""Fine-tune pretrained models together, split between small devices and a server.

The names below are the whole public Python API; each is imported on first use, so ``import fedsplit`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "serve": ("fedsplit_server.serve", "serve"),
    "join": ("fedsplit_client.join", "join"),
    "simulate": ("fedsplit.cli.simulate", "simulate"),
    "make_plan": ("fedsplit.plan.solve", "solve"),
    "verify": ("fedsplit.split.verify", "verify"),
}

__all__ = ["__version__", "join", "make_plan", "serve", "simulate", "verify"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fedsplit' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
