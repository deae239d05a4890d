"""When a device leaves the token embedding in the file and reads rows as it needs them.

A large vocabulary can be most of what a device would hold: Llama 3.2 1B's table is 525 MB in bfloat16, its embedding
and its head both, and a step touches a few hundred rows of it as embedding and all of it, once, as head. Below the
threshold the table stays in memory: reading it again in every step costs time, and a small one is not worth it.
"""

from __future__ import annotations

STREAM_BYTES = 1 << 28
"""Largest token embedding, in the number format of the run, that a device keeps in memory."""


def streams(vocabulary: int, hidden: int, width_bytes: int) -> bool:
    """Whether token embedding and frozen language-model head stay in the file: on a CPU, at more than STREAM_BYTES."""
    return vocabulary * hidden * width_bytes > STREAM_BYTES
