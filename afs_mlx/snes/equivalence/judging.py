"""From two texts to a verdict: assembles both, finds out what is not declared, holds one against the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from afs_mlx.schema.optimisation import EntryState, Live
from afs_mlx.snes.asar import Assembly, assemble
from afs_mlx.snes.equivalence.checker import STATES, Checker, Contract, Report
from afs_mlx.snes.equivalence.comparison import Span
from afs_mlx.snes.equivalence.widths import entry_states
from afs_mlx.snes.execution.entries import span_of
from afs_mlx.snes.execution.routine import Routine
from afs_mlx.snes.grammar import Problem

type TextVerdict = Literal["equal", "differs", "no return", "not verifiable", "does not assemble", "not verified"]


@dataclass(frozen=True)
class Judgement:
    """What became of both texts. `report` is None where the verdict is "does not assemble" or "not verified"."""

    verdict: TextVerdict
    why: str
    reference: Assembly
    candidate: Assembly
    entries: tuple[EntryState, ...] = ()
    report: Report | None = None

    def notes(self) -> tuple[Problem, ...]:
        """What was noticed while the candidate was executed, at the lines of its text."""
        if self.report is None:
            return ()
        routine = Routine.of(self.candidate)
        return tuple(routine.problem(note.offset, note.message) for note in self.report.notes)


def judge(
    reference: str,
    candidate: str,
    declared: Mapping[str, int] | EntryState,
    live: tuple[Live, ...] | None = None,
    scratch: tuple[Span, ...] = (),
    states: int = STATES,
    seed: int = 0,
) -> Judgement:
    """Whether the candidate does what the reference does, under an entry state or some keys of one.

    "not verified" where Asar is missing, "not verifiable" where the reference cannot be held to, both with the reason.
    Raises pydantic's ValidationError for a bad `declared`.
    """
    first, second = assemble(reference), assemble(candidate)
    if "unavailable" in (first.status, second.status):
        return Judgement("not verified", "Asar is not installed", first, second)
    if first.status != "ok":
        return Judgement("not verifiable", f"the reference does not assemble: {first.errors[0]}", first, second)
    if second.status != "ok":
        return Judgement("does not assemble", str(second.errors[0]), first, second)
    routine = Routine.of(first)
    entries = (declared,) if isinstance(declared, EntryState) else entry_states(routine, declared)
    if not entries:
        why = "the reference runs as written under no widths of A and X/Y; declare m and x"
        return Judgement("not verifiable", why, first, second)
    spans = tuple(span for first_, last in scratch if (span := span_of(first_, last)))
    report = Checker(routine, Contract(entries, live, spans), states, seed).check(Routine.of(second))
    return Judgement(report.verdict, report.why, first, second, entries, report)
