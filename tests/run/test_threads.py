"""A client computes with the threads that its plan was priced for, unless its owner said otherwise."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

from fedsplit.config.run import ClientSection, ModelSection, RunFile
from fedsplit_client import computing
from fedsplit_client.torch_backend import TorchBackend
from tests.run.party import LAPTOP

RUN = RunFile(model=ModelSection(path="x"), clients=(ClientSection(name="pi", threads=3), ClientSection(name="b")))


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(computing, "usable_threads", lambda: 16)


def test_the_run_file_then_the_own_measurement_then_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = replace(LAPTOP, threads=2)
    assert computing.threads_of(RUN, "pi", measured) == 3
    assert computing.threads_of(RUN, "b", measured) == 2
    assert computing.threads_of(RUN, "stranger", None) == 0
    monkeypatch.setattr(computing, "usable_threads", lambda: 1)
    assert computing.threads_of(RUN, "pi", measured) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert computing.threads_of(RUN, "pi", measured) == 0


def test_afterwards_all_is_as_before() -> None:
    before = torch.get_num_threads()
    backend = TorchBackend("cpu")
    with backend.computing(computing.threads_of(RUN, "pi", None)):
        assert torch.get_num_threads() == 3
    with backend.computing(computing.threads_of(RUN, "b", None)):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
