"""The native packages, each imported and made to work in a process of its own.

A wheel that was compiled for a newer CPU installs and often even imports; it dies of an illegal instruction when it
computes first. So each one computes here, where only a child process dies.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from typing import NamedTuple

from fedsplit_client.doctor.apart import Outcome, run_apart
from fedsplit_client.doctor.finding import Finding

DEADLINE_S = 90.0
"""Importing torch from an SD card takes half a minute."""


class Wheel(NamedTuple):
    """``work``: Python that uses it and fails where it computes wrongly. ``extra``: brings it; empty: needed."""

    name: str
    work: str
    extra: str = ""
    package: str = ""

    @property
    def pip(self) -> str:
        """Its name at the package index."""
        return self.package or self.name


# MatMul(x, x) of float32 4 × 4 as an ONNX model.
_GRAPH = "CAgSADpAChEKAXgKAXgSAXkiBk1hdE11bBIBZ1oTCgF4Eg4KDAgBEggKAggECgIIBGITCgF5Eg4KDAgBEggKAggECgIIBEIECgAQDQ=="

WHEELS = (
    Wheel("numpy", "a = numpy.ones((65, 65), 'f4'); assert float((a @ a).sum()) == 65.0**3"),
    Wheel(
        "zmq",
        "zmq.curve_keypair(); c = zmq.Context(); a = c.socket(zmq.PAIR); b = c.socket(zmq.PAIR);"
        "a.bind('inproc://a'); b.connect('inproc://a'); a.send(b'1'); assert b.recv() == b'1';"
        "a.close(0); b.close(0); c.term()",
        package="pyzmq",
    ),
    Wheel("msgspec", "assert msgspec.msgpack.decode(msgspec.msgpack.encode({'a': [1.5]})) == {'a': [1.5]}"),
    Wheel(
        "safetensors",
        "import numpy, safetensors.numpy as s;"
        "a = numpy.arange(6, dtype='f4'); assert (s.load(s.save({'a': a}))['a'] == a).all()",
    ),
    Wheel(
        "tokenizers",
        "t = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 1}, unk_token='a'));"
        "assert t.encode('b').ids == [1]",
    ),
    Wheel("psutil", "assert psutil.virtual_memory().total > 0 and psutil.cpu_times()"),
    Wheel(
        "onnxruntime",
        f"import base64, numpy; s = onnxruntime.InferenceSession(base64.b64decode({_GRAPH!r}),"
        "providers=['CPUExecutionProvider']); a = numpy.ones((4, 4), 'f4');"
        "assert (s.run(None, {'x': a})[0] == 4).all()",
        "edge",
    ),
    Wheel(
        "torch",
        "a = torch.ones(65, 65, requires_grad=True); torch.nn.functional.gelu(a @ a).sum().backward();"
        "assert bool(torch.isfinite(a.grad).all())",
        "torch",
    ),
)


def try_wheel(wheel: Wheel, lacks: Collection[str] = (), deadline_s: float = DEADLINE_S) -> Finding:
    """Does it import and compute? ``lacks``: CPU features that this machine does not have, to name a likely cause."""
    code = f"import {wheel.name}\n{wheel.work}\nprint(getattr({wheel.name}, '__version__', ''))\n"
    outcome = run_apart(code, deadline_s=deadline_s)
    if outcome.code == 0:
        return Finding(check=wheel.name, level="ok", found=f"{outcome.said.strip()} works".strip())
    words = outcome.last_words
    if outcome.code is not None and outcome.code > 0 and _is_absent(wheel, words):
        return _absent(wheel)
    # It is there and broken: that fedsplit would fall over it is a problem even where another one could do its work.
    return Finding(check=wheel.name, level="problem", found=_died(wheel, outcome, lacks, deadline_s), fix=_mend(wheel))


def _is_absent(wheel: Wheel, words: str) -> bool:
    return words == f"ModuleNotFoundError: No module named '{wheel.name}'"


def _absent(wheel: Wheel) -> Finding:
    if wheel.extra:
        return Finding(
            check=wheel.name, level="skipped", found="is not installed; one of onnxruntime and torch is enough"
        )
    fix = f"pip install {wheel.pip}"
    return Finding(check=wheel.name, level="problem", found="is not installed; fedsplit does not start", fix=fix)


def _died(wheel: Wheel, outcome: Outcome, lacks: Collection[str], deadline_s: float) -> str:
    if outcome.code is None:
        return f"{wheel.name} hangs: it had not finished a tiny computation after {deadline_s:.0f} s"
    if outcome.code == -getattr(signal, "SIGILL", 0) or outcome.code == 0xC000001D:  # Windows' number for the same
        without = f" (it has no {', '.join(sorted(lacks))})" if lacks else ""
        return f"{wheel.name} dies with an illegal instruction on this CPU{without}: it was compiled for a newer one"
    if outcome.code == -getattr(signal, "SIGKILL", 0):
        return f"{wheel.name} was killed: systems do that when memory runs out"
    if outcome.code < 0:
        return f"{wheel.name} crashes ({_signal(-outcome.code)})"
    return f"{wheel.name} cannot be used: {outcome.last_words or f'exit status {outcome.code}'}"


def _mend(wheel: Wheel) -> str:
    if wheel.name == "torch":
        return "pip uninstall torch; pip install 'fedsplit[edge]'"
    if wheel.name == "onnxruntime":
        return "pip install --force-reinstall onnxruntime, or use torch: pip install 'fedsplit[torch]'"
    return (
        f"pip install --force-reinstall {wheel.pip}; if that does not help: pip install --no-binary :all: {wheel.pip}"
    )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def backend(findings: Collection[Finding]) -> Finding:
    """What a client on this machine would compute with, by what works."""
    works = {one.check for one in findings if one.level == "ok"}
    if "torch" in works:
        return Finding(check="backend", level="ok", found="torch: every topology and every model")
    if "onnxruntime" in works:
        return Finding(
            check="backend", level="ok", found="the edge runtime (onnxruntime), on graphs that the server exports"
        )
    fix = "pip install 'fedsplit[edge]' (small), or 'fedsplit[torch]'"
    return Finding(
        check="backend", level="problem", found="neither torch nor onnxruntime works: nothing to train with", fix=fix
    )
