"""Rules of ``plan.bits`` and ``server.bits``."""

from __future__ import annotations

import pytest

from fedsplit.config.load import loads
from fedsplit.errors import ConfigError

MODEL = '[model]\npath = "minilm"\ntask = "classification"\nlabels = ["a", "b"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[plan]\nbits = [4]", 'plan.layers: found "all", expected "fit" with plan.bits'),
        ('[plan]\nlayers = "fit"\nbits = [4, 4]', "plan.bits[1]: found 4, expected every width once"),
        ('[plan]\nlayers = "fit"\nbits = [3]', "plan.bits[0]: found 3"),
        (
            '[plan]\nlayers = "fit"\nbits = [4]\ncoverage = 1',
            "plan.bits: found a list of 1, expected none with plan.coverage",
        ),
        ("[server]\nbits = 2", "server.bits: found 2"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(MODEL + text)
    assert words in str(caught.value)


def test_sixteen_bits_of_a_model_in_bfloat16_are_none_to_save() -> None:
    with pytest.raises(ConfigError, match=r"plan\.bits\[0\]: found 16, expected fewer than the 16 of model\.dtype"):
        loads(MODEL + 'dtype = "bfloat16"\n[plan]\nlayers = "fit"\nbits = [16]')


def test_they_are_read() -> None:
    run = loads(MODEL + '[plan]\nlayers = "fit"\nbits = [8, 4]\n[server]\nbits = 4')
    assert (run.plan.bits, run.server.bits) == ((8, 4), 4)
