"""``compare --test FILE``: the checkpoint that validation chose, measured once on rows that chose nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.data.partition import digest
from fedsplit.errors import DataError
from fedsplit.split.base import Base, open_base
from fedsplit.train.exam import Exam
from fedsplit.train.exported import model_folder, of_run


class FileExam:
    """Implements ``Examiner`` on ``path``, which is read once at the start, so that a wrong file is heard of then.

    :raises DataError: there is no such file, or its rows do not fit the runs.
    """

    def __init__(self, path: Path, runs: Sequence[RunFile], device: str = "cpu") -> None:
        if not path.exists():
            raise DataError("there is no such file; --test names rows that nobody trains on", str(path))
        self.path, self.sha256, self._device = path, digest(path), device
        self._bases: dict[str, Base] = {}
        self._exam(runs[0])

    def of(self, folder: Path) -> dict[str, float | None]:
        run, state, _ = of_run(folder)
        found = self._exam(run).of(state)
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    def _exam(self, run: RunFile) -> Exam:
        if run.model.path not in self._bases:
            self._bases[run.model.path] = open_base(model_folder(run.model.path))
        return Exam(run, self._bases[run.model.path], self.path, device=self._device)
