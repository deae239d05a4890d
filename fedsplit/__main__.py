"""``python -m fedsplit``: the same command where the script is not on the path."""

from __future__ import annotations

from fedsplit.cli.main import run

if __name__ == "__main__":
    run()
