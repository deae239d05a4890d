"""Models in segments: what a span holds, how it runs, and the proof that the segments are the whole."""

from __future__ import annotations

import logging

# peft imports bitsandbytes where it is installed, which then warns about a kernel package that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
