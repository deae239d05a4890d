"""Events between processes: one line each, whatever the numbers are."""

from __future__ import annotations

import math

from fedsplit.events import Measured, StepDone, from_json, to_json


def test_an_event_survives_the_way_to_another_process() -> None:
    event = StepDone(client="pi", round=1, step=2, steps=3, loss=0.1 + 0.2, seconds=1e-9, up_bytes=2**40)
    assert from_json(to_json(event)) == event


def test_what_was_measured_on_nothing_arrives_as_nan() -> None:
    found = from_json(to_json(Measured(round=0, phase="before", metrics={"accuracy": math.nan, "loss": 1.0})))
    assert isinstance(found, Measured)
    assert math.isnan(found.metrics["accuracy"])
    assert found.metrics["loss"] == 1.0


def test_a_librarys_chatter_is_no_event() -> None:
    assert from_json("Loading weights: 100%") is None
    assert from_json('{"event": "Nonsense"}') is None
    assert from_json('"event"') is None
