"""Labelled queries, and folds that keep a group together."""

import hashlib
from pathlib import Path

from pydantic import Field

from afs_mlx.core.config import StrictModel
from afs_mlx.core.jsonl import read_jsonl

FOLDS = 5


class LabelledQuery(StrictModel):
    """A query and the expert it is for. Rows of a `group` are about the same thing, `kind` is for reports."""

    query: str
    expert: str = Field(min_length=1)
    group: str = ""
    kind: str = ""

    @property
    def held_together(self) -> str:
        """The name by which rows go to the same fold; a row without a group stands for itself."""
        return self.group or " ".join(self.query.lower().split())


def read_rows(path: Path) -> list[LabelledQuery]:
    """All rows of a file; every bad line is reported at once."""
    return read_jsonl(path, LabelledQuery.model_validate)


def fold_of(row: LabelledQuery, folds: int = FOLDS) -> int:
    """Which fold validates a row: from its group alone, so that a new row moves no other."""
    digest = hashlib.sha256(f"routing:{row.held_together}".encode()).digest()
    return int.from_bytes(digest[:8]) % folds
