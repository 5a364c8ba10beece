"""Whether a candidate does what a reference does: both run from many states that the contract allows.

A verdict "equal" is evidence from that many states, not a proof over all of them; "differs" comes with a state that
shows it.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from afs_mlx.schema.optimisation import EntryState, Live
from afs_mlx.snes.cpu.opcodes import OPCODES
from afs_mlx.snes.equivalence.comparison import Difference, Span, first_difference
from afs_mlx.snes.equivalence.outputs import inferred
from afs_mlx.snes.equivalence.shrinking import TRIES, Shrinker
from afs_mlx.snes.execution.board import ENDLESS, RETURNS_UNCALLED, Board, Note, Outcome
from afs_mlx.snes.execution.cost import Cost
from afs_mlx.snes.execution.entries import KINDS, Entry, draw
from afs_mlx.snes.execution.routine import Routine

type Verdict = Literal["equal", "differs", "no return", "not verifiable"]

type Run = tuple[EntryState, Entry, Outcome]
"""What was declared, the state drawn, and what the reference made of it."""

STATES = 512
LEAST_STATES = 16  # fewer that can be judged by prove nothing
RUN_BUDGET = 20_000  # instructions of one run of the reference
TOTAL_BUDGET_CYCLES = 6_000_000  # of all runs of one routine; then the states so far must do
CANDIDATE_FACTOR, CANDIDATE_SLACK = 4, 1000  # a candidate may take this many instructions per cycle of the reference
PATIENCE = 300_000  # instructions after which a candidate that took longer is given up
LONG_RUN_CYCLES, LONG_RUN_TRIES = 50_000, 12  # a counter-example of such a run is made smaller in fewer steps
EXTRA_STATES, MOST_EXTRA_STATES = 96, 1024  # more, made of the candidate's own constants
STATES_PER_CONSTANT = 18  # so that a comparison with any one of many is met: 6 for each, its predecessor and successor
MOST_DOUBTFUL = 1 / 16  # of the runs of a candidate may differ and be laid to an index that went astray
MOST_ASTRAY = 0.02  # of the runs of the reference may leave it without meaning to
MOST_REACHING_STATES = 1024  # more, while a line is reached from none
_RARE = 0.5  # an instruction that meets a port in fewer of its runs than this got there by accident
_SAMPLE = 96  # runs that are executed once more, step by step, to see how often an instruction was executed at all
_DIRECT_MODES = frozenset(("a", "al"))


@dataclass(frozen=True)
class Contract:
    """What a routine may assume and what its surroundings rely on.

    `entries` are alternatives, tried in turn. `live` None: inferred from the reference. `scratch` is memory that nobody
    reads afterwards.
    """

    entries: tuple[EntryState, ...]
    live: tuple[Live, ...] | None = None
    scratch: tuple[Span, ...] = ()


@dataclass(frozen=True)
class CounterExample:
    """A state that shows the difference, made as small as was possible."""

    entry: Entry
    expected: Outcome
    got: Outcome
    difference: Difference


@dataclass(frozen=True)
class Report:
    """A verdict and its reason. Costs are over the states that were judged; None where there is nothing to compare."""

    verdict: Verdict
    why: str
    states: int
    live: tuple[Live, ...]
    reference: Cost | None = None
    candidate: Cost | None = None
    counter_example: CounterExample | None = None
    notes: tuple[Note, ...] = ()
    unreached: tuple[tuple[str, int], ...] = ()
    """Lines (of `reference` or `candidate`) that a branch leads to and no state did: of them nothing is known."""

    def cheaper(self, goal: str) -> bool:
        """Equal, and cheaper for the goal (`bytes` or `cycles`)."""
        if self.verdict != "equal" or self.candidate is None or self.reference is None:
            return False
        return self.candidate.cheaper_than(self.reference, goal)


@dataclass
class Checker:
    """A reference that has run from its states once; `check` holds any number of candidates against it."""

    routine: Routine
    contract: Contract
    states: int = STATES
    seed: int = 0
    fast: bool = False
    """Whether code in banks $80-$FF runs from FastROM."""
    exactly: bool = False
    """No more states than asked for, also where the reference has many constants."""
    runs: list[Run] = field(init=False, default_factory=list, repr=False)
    live: tuple[Live, ...] = field(init=False, default=())
    notes: tuple[Note, ...] = field(init=False, default=())
    unreached: tuple[int, ...] = field(init=False, default=())
    """The user's lines that a branch leads to and no state did."""
    problem: str = field(init=False, default="")
    """Why nothing can be held against this reference; empty when it can."""

    def __post_init__(self) -> None:
        self._board = Board(self.routine, self.fast)
        self._reachable = self.routine.reachable(self.contract.entries)
        tried = list(self._run_all())
        self.unreached = _unreached(self._board, self._reachable)
        self.notes = tuple(sorted(self._board.notes))
        returned = [(entry, outcome) for _, entry, outcome in tried if outcome.returned]
        self._accidents = _accidents(self._board, returned, self.contract.entries)
        self.runs = [run for run in tried if self._can_be_judged(run[2])]
        left_out = [outcome for _, outcome in returned if not self._can_be_judged(outcome)]
        # What the reference does by accident in some states, a candidate may do in others.
        self._strays = any(outcome.at_ports & self._accidents for outcome in left_out)
        self._reads_itself = any(outcome.read_itself for outcome in left_out)
        elsewhere = [o.stop for _, _, o in tried if not o.returned and o.stop != ENDLESS]
        # A wild pointer may overwrite the return address once in a while; a jump out of the routine is meant.
        is_meant = any(self.routine.ends_by(stop) for stop in elsewhere) or len(elsewhere) > MOST_ASTRAY * len(tried)
        if is_meant or len(self.runs) < min(LEAST_STATES, self.states) or len(self.runs) * 2 < len(tried):
            self.problem = self._why_not(tried)
        elif self.contract.live is None:
            self.live = inferred(self.routine, [(entry, outcome) for _, entry, outcome in self.runs])
        else:
            self.live = self.contract.live

    def _can_be_judged(self, outcome: Outcome) -> bool:
        return outcome.returned and not outcome.read_itself and not outcome.at_ports & self._accidents

    def _run_all(self) -> Iterator[Run]:
        spent_cycles = returned = 0
        more = 0 if self.exactly else _states_for(self.routine.constants) - self.states // len(KINDS)
        for index in range(self.states + min(self.states, max(0, more))):
            run = self._run(index, self.routine.constants if index >= self.states else ())
            yield run
            spent_cycles += run[2].cycles
            returned += run[2].returned
            if spent_cycles > TOTAL_BUDGET_CYCLES and index >= 2 * LEAST_STATES:
                return
        if self.exactly or 2 * returned < self.states:
            return
        for index in range(MOST_REACHING_STATES):
            if not _unreached(self._board, self._reachable):
                return
            yield self._run(self.states + index, self.routine.constants)

    def _run(self, index: int, only: tuple[int, ...] = ()) -> Run:
        """The reference from one state; `only` are constants that the state is made of."""
        entries = self.contract.entries
        # Each alternative meets each kind of state, whatever their numbers are.
        declared = entries[index if index < len(entries) else random.Random(index).randrange(len(entries))]
        entry = draw(declared, index, self.seed, only or self.routine.constants, only_constants=bool(only))
        return declared, entry, self._board.execute(entry, RUN_BUDGET)

    def _runs_for(self, board: Board, reachable: frozenset[int]) -> Iterator[Run]:
        """The runs of the reference, then more: of constants that only the candidate has, and while it has lines that
        no state has led to.
        """
        yield from self.runs
        candidate = board.routine
        new = tuple(sorted(set(candidate.constants) - set(self.routine.constants)))
        extra = min(self.states, max(EXTRA_STATES, _states_for(new))) if new else 0
        for index in range(extra + MOST_REACHING_STATES):
            if index >= extra and not _unreached(board, reachable):
                return
            run = self._run(index + self.states, new or candidate.constants)
            if self._can_be_judged(run[2]):
                yield run

    @property
    def cost(self) -> Cost | None:
        """What the reference costs over its states, None when there are none."""
        outcomes = [outcome for _, _, outcome in self.runs]
        return Cost.of(len(self.routine.code), outcomes) if outcomes else None

    def _why_not(self, tried: Sequence[Run]) -> str:
        """What most often kept the reference from being judged."""
        stops = Counter(outcome.stop for _, _, outcome in tried if not outcome.returned)
        if stops:
            stop, count = stops.most_common(1)[0]
            why = f"the reference {stop} from {count} of {len(tried)} states"
        elif self._reads_itself:
            why = f"the reference reads its own instructions; {len(self.runs)} of {len(tried)} states are left"
        else:
            why = (
                f"the reference reaches ports by an index or pointer; {len(self.runs)} of {len(tried)} states are left"
            )
        notes = [str(self.routine.problem(note.offset, note.message)) for note in self.notes[:1]]
        return "; ".join([why, *notes])

    def check(self, candidate: Routine) -> Report:
        """Run the candidate from the same states until one shows a difference."""
        if self.problem:
            return Report("not verifiable", self.problem, len(self.runs), self.live)
        board = Board(candidate, self.fast, self.routine.entered_by, len(self.routine.code))
        reachable = candidate.reachable(self.contract.entries)
        judged: list[tuple[Entry, Outcome, Outcome]] = []
        doubtful: list[tuple[EntryState, Entry, Outcome, Difference]] = []
        spent_cycles = 0
        for declared, entry, expected in self._runs_for(board, reachable):
            got = board.execute(entry, _budget(expected))
            is_slow = got.stop == ENDLESS
            if is_slow:
                got = board.execute(entry, PATIENCE)
            difference = self._difference(entry, expected, got)
            if difference is None:
                judged.append((entry, expected, got))
            elif self._may_be_an_accident(got):
                doubtful.append((declared, entry, got, difference))
            else:
                return self._differs(board, declared, entry, got, difference, is_slow)
            spent_cycles += got.cycles
            if spent_cycles > TOTAL_BUDGET_CYCLES and len(judged) >= 2 * LEAST_STATES:
                break
        candidate_runs = [*((e, got) for e, _, got in judged), *((e, got) for _, e, got, _ in doubtful)]
        accidents = _accidents(board, candidate_runs, self.contract.entries) if doubtful else frozenset()
        are_too_many = len(doubtful) > MOST_DOUBTFUL * len(candidate_runs)
        for declared, entry, got, difference in doubtful:
            if are_too_many or not (got.read_itself or got.at_ports & accidents):
                return self._differs(board, declared, entry, got, difference)
        lines = [("reference", line) for line in self.unreached]
        lines += [("candidate", line) for line in _unreached(board, reachable)]
        return Report(
            "equal",
            "; ".join(
                [f"the same from {len(judged)} states", *(f"line {n} of the {w} from none" for w, n in lines[:2])]
            ),
            len(judged),
            self.live,
            Cost.of(len(self.routine.code), [expected for _, expected, _ in judged]),
            Cost.of(len(candidate.code), [got for _, _, got in judged]),
            notes=tuple(sorted(board.notes)),
            unreached=tuple(lines),
        )

    def _may_be_an_accident(self, got: Outcome) -> bool:
        """Whether a run that came back went astray as the reference does in other states."""
        if not got.returned:
            return False
        return (self._reads_itself and got.read_itself) or (self._strays and bool(got.at_ports))

    def _difference(self, entry: Entry, expected: Outcome, got: Outcome) -> Difference | None:
        return first_difference(entry, expected, got, self.live, self.contract.scratch)

    def _differs(
        self,
        board: Board,
        declared: EntryState,
        entry: Entry,
        got: Outcome,
        difference: Difference,
        is_slow: bool = False,
    ) -> Report:
        def budget(expected: Outcome) -> int:
            return PATIENCE if is_slow and got.returned else _budget(expected)

        def differ(simpler: Entry) -> Difference | None:
            expected = self._board.execute(simpler, RUN_BUDGET)
            if not self._can_be_judged(expected):
                return None
            return self._difference(simpler, expected, board.execute(simpler, budget(expected)))

        shrinker = Shrinker(differ, entry, difference, LONG_RUN_TRIES if got.cycles > LONG_RUN_CYCLES else TRIES)
        shrinker.shrink(declared)
        expected = self._board.execute(shrinker.entry, RUN_BUDGET)
        smaller = board.execute(shrinker.entry, budget(expected))
        comes_back = smaller.returned or smaller.stop == RETURNS_UNCALLED
        return Report(
            "differs" if comes_back else "no return",
            str(shrinker.found) if comes_back else f"it {smaller.stop}",
            len(self.runs),
            self.live,
            self.cost,
            counter_example=CounterExample(shrinker.entry, expected, smaller, shrinker.found),
            notes=tuple(sorted(board.notes)),
        )


def _unreached(board: Board, reachable: frozenset[int]) -> tuple[int, ...]:
    """The lines of a routine that a branch leads to and no run on this board has executed."""
    routine = board.routine
    seen = {routine.offset_of(address) for fetched in board.fetched_by_mode.values() for address in fetched}
    return tuple(
        place.line
        for place in routine.placed
        if not place.is_data and place.offset in reachable and place.offset not in seen
    )


def _states_for(constants: Collection[int]) -> int:
    return min(MOST_EXTRA_STATES, STATES_PER_CONSTANT * len(constants))


def _budget(expected: Outcome) -> int:
    """Instructions for a candidate."""
    return CANDIDATE_FACTOR * expected.cycles + CANDIDATE_SLACK


def _accidents(board: Board, runs: Sequence[tuple[Entry, Outcome]], entries: tuple[EntryState, ...]) -> frozenset[int]:
    """The instructions that met a port, by an index or a pointer, in few of the runs in which they were executed."""
    routine = board.routine
    direct = set(_DIRECT_MODES) | ({"d"} if all(entry.d is not None for entry in entries) else set())
    by_design = {
        routine.org + place.offset + place.size
        for place in routine.placed
        if not place.is_data and OPCODES[routine.code[place.offset]].mode in direct
    }
    counts = Counter(address for _, outcome in runs for address in outcome.at_ports)
    if all(count >= _RARE * len(runs) or address in by_design for address, count in counts.items()):
        return frozenset()
    sample = runs[:: -(-len(runs) // _SAMPLE)]
    met = Counter(address for _, outcome in sample for address in outcome.at_ports)
    executed = Counter(address for entry, _ in sample for address in board.executed(entry, RUN_BUDGET))
    return frozenset(
        address
        for address, count in counts.items()
        if address not in by_design
        and (met[address] < _RARE * executed[address] if met[address] else count < len(runs))
    )
