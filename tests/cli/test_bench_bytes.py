"""``fedsplit bench bytes``: real processes, bytes of a step as the socket counted them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsplit.cli.bench_bytes import rows
from fedsplit.errors import ConfigError, DataError


@pytest.mark.soak
def test_a_codec_saves_on_the_socket_what_the_formula_says() -> None:
    raw, whole = rows(model="bert", batch=4, tokens=32, steps=1, codecs="raw,int4")
    assert raw["formula_bytes"] == 4 * 4 * 32 * 384 * 4
    assert whole["formula_bytes"] == 2 * 4 * 32 * 12 * (22 + 14)
    assert 0 < int(str(whole["header_bytes"])) < 2000
    assert float(str(whole["of_raw"])) < 0.15


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raw first"):
        rows(codecs="int8")
    with pytest.raises(ConfigError, match="some of raw"):
        rows(codecs="raw,zip")
    with pytest.raises(ConfigError, match="dense first"):
        rows(quality=True, ways="int4", data=tmp_path)
    with pytest.raises(ConfigError, match="some of dense"):
        rows(quality=True, ways="dense,zip", data=tmp_path)
    with pytest.raises(ConfigError, match="whole numbers"):
        rows(quality=True, seeds="one", data=tmp_path)
    with pytest.raises(DataError, match="no folder ag_news"):
        rows(quality=True, task="ag_news", data=tmp_path)
