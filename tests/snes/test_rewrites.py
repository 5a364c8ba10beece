"""Peephole rewrites with a known verdict, most of them in twins: the same rewrite, once valid and once broken by one
condition. They were reasoned out and written down without the checker.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ConfigDict

from afs_mlx.core.config import StrictModel
from afs_mlx.core.jsonl import read_jsonl
from afs_mlx.schema.optimisation import EntryState, Live
from afs_mlx.snes.asar import Assembly, asar_path, assemble
from afs_mlx.snes.equivalence.checker import Checker, Contract
from afs_mlx.snes.equivalence.comparison import first_difference
from afs_mlx.snes.execution.board import Board
from afs_mlx.snes.execution.routine import Routine

pytestmark = pytest.mark.slow

FILE = Path(__file__).with_name("rewrites.jsonl")
needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")


class Rewrite(StrictModel):
    """`rare`: the two differ in about one natural state of 256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    entry: EntryState
    live: tuple[Live, ...]
    code: str
    candidate: str
    verdict: Literal["equal", "differs", "no return"]
    why: str
    rare: bool = False


REWRITES = read_jsonl(FILE, Rewrite.model_validate)


@pytest.fixture(scope="module")
def routines() -> dict[str, Routine]:
    texts = sorted({text for row in REWRITES for text in (row.code, row.candidate)})
    with ThreadPoolExecutor(4) as pool:
        assemblies: list[Assembly] = list(pool.map(assemble, texts))
    assert [a.errors for a in assemblies if a.status != "ok"] == []
    return {text: Routine.of(found) for text, found in zip(texts, assemblies, strict=True)}


def test_there_are_enough_of_each_verdict() -> None:
    counts: Counter[str] = Counter(row.verdict for row in REWRITES)
    assert min(counts["equal"], counts["differs"]) >= 150
    assert counts["no return"] >= 20
    assert len({row.id for row in REWRITES}) == len(REWRITES)


@needs_asar
@pytest.mark.parametrize("row", REWRITES, ids=lambda row: row.id)
def test_the_verdict_is_right(row: Rewrite, routines: dict[str, Routine]) -> None:
    contract = Contract((row.entry,), row.live)
    report = Checker(routines[row.code], contract).check(routines[row.candidate])
    assert report.verdict == row.verdict, f"{row.title}: {row.why} {report.why}"
    if row.verdict != "equal":
        assert report.counter_example is not None
        assert shown_again(row, routines, report.counter_example.entry), "the counter-example shows it on its own"


def shown_again(row: Rewrite, routines: dict[str, Routine], entry: Any) -> bool:
    expected, got = (Board(routines[text]).execute(entry, 300_000) for text in (row.code, row.candidate))
    return expected.returned and first_difference(entry, expected, got, row.live) is not None
