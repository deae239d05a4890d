"""Fine-tune pretrained models together, split between small devices and a server.

The names below are the whole public Python API; each is imported on first use, so ``import fedsplit`` needs no torch.

* ``serve(run, …)`` hosts a run until it is done, ``join(link, data, …)`` takes part in one; they return how
  it ended, a ``Served`` and a ``Joined``.
* ``simulate(run_file, …)`` starts both as real processes on this machine.
* ``make_plan(card, devices, run, …)`` decides who holds and trains what.
* ``export(folder, out)`` writes a run's result as a plain peft adapter.
* ``verify(…)`` compares the split model with the unsplit one, bit for bit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsplit.cli.simulate import run_processes as simulate
    from fedsplit.plan.solve import solve as make_plan
    from fedsplit.split.verify import verify
    from fedsplit.train.exporting import export
    from fedsplit_client.join import Joined, join
    from fedsplit_server.serve import Served, serve

__version__ = "0.1.0.dev0"

__all__ = ["Joined", "Served", "__version__", "export", "join", "make_plan", "serve", "simulate", "verify"]

# ``plan`` would be the better name, but importing the package fedsplit.plan would replace the function.
_PUBLIC = {
    "serve": ("fedsplit_server.serve", "serve"),
    "join": ("fedsplit_client.join", "join"),
    "simulate": ("fedsplit.cli.simulate", "run_processes"),
    "make_plan": ("fedsplit.plan.solve", "solve"),
    "export": ("fedsplit.train.exporting", "export"),
    "Served": ("fedsplit_server.serve", "Served"),
    "Joined": ("fedsplit_client.join", "Joined"),
    "verify": ("fedsplit.split.verify", "verify"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fedsplit' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
