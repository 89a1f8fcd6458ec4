"""The file of evaluations: one JSON line for each student at each evaluated step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec_export.distill.evaluate import Earned


@dataclass(frozen=True)
class Progress:
    """Rows in the order of steps, each (step, student) once, however often a run is resumed."""

    file: Path

    def rows(self) -> list[dict[str, Any]]:
        """Whole lines only: a killed process may leave half a line behind."""
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def keep(self, step: int) -> None:
        """Forgets what came after ``step``, which will happen again."""
        if self.file.is_file():
            rows = [row for row in self.rows() if row["step"] <= step]
            partial = self.file.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            partial.replace(self.file)

    def add(self, step: int, student: str, earned: Earned, loss: float | None) -> None:
        """Writes one row; ``loss`` is that of the step before the evaluation."""
        if any(row["step"] == step and row["student"] == student for row in self.rows()):
            return
        row: Mapping[str, Any] = {
            "step": step, "student": student, "accepted_length": earned.accepted_length,
            "agreement": earned.agreement, "tokens": earned.tokens, "loss": loss,
        }  # fmt: skip
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def history(self, student: str) -> list[tuple[int, float]]:
        """(step, accepted length) of every evaluation of a student."""
        return [(r["step"], r["accepted_length"]) for r in self.rows() if r["student"] == student]
