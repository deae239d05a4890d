"""What a run and its clients may be called: names become folders and travel in messages."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
RULE = "1 to 64 letters, digits, dots, dashes or underscores, not starting with a dot or a dash"
