"""The curated rows and the suite: each better routine does the same for less, and neither file knows the other.

Both sides of every row go through Asar once, several at a time: a call takes 20 to 40 ms, most of it starting up.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afs_mlx.core.jsonl import read_jsonl
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.schema.optimisation import OptimisationPair, normalised, skeleton
from afs_mlx.snes.asar import Assembly, asar_path, assemble
from afs_mlx.snes.code_block import assembly_of
from afs_mlx.snes.equivalence.checker import STATES, Checker, Contract
from afs_mlx.snes.execution.routine import Routine

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CURATED = ROOT / "data" / "curated" / "din-v2.jsonl"
SUITE = ROOT / "evals" / "suites" / "optimisation.jsonl"

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")
both = pytest.mark.parametrize("path", [CURATED, SUITE], ids=["curated", "suite"])


def pairs_in(path: Path) -> list[OptimisationPair]:
    return read_jsonl(path, OptimisationPair.model_validate)


@pytest.fixture(scope="module")
def assemblies() -> Mapping[str, Assembly]:
    """Every routine of both files as assembled."""
    texts = sorted({text for path in (CURATED, SUITE) for pair in pairs_in(path) for text in (pair.code, pair.better)})
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(texts, pool.map(assemble, texts), strict=True))


@pytest.mark.parametrize(("path", "least"), [(CURATED, 120), (SUITE, 30)], ids=["curated", "suite"])
def test_there_are_enough_rows_with_ids_of_their_own(path: Path, least: int) -> None:
    ids = [pair.id for pair in pairs_in(path)]
    assert len(ids) >= least
    assert len(set(ids)) == len(ids)


def test_no_id_means_two_rows() -> None:
    assert not {pair.id for pair in pairs_in(CURATED)} & {pair.id for pair in pairs_in(SUITE)}


@both
def test_no_row_stands_twice(path: Path) -> None:
    questions = [normalised(pair.question()) for pair in pairs_in(path)]
    assert len(set(questions)) == len(questions)


@both
def test_every_row_says_why_and_when_not(path: Path) -> None:
    for pair in pairs_in(path):
        assert pair.reason.strip(), pair.id
        assert pair.not_when.strip(), pair.id
        assert pair.reason.rstrip().endswith("."), pair.id


@both
def test_what_is_true_on_entry_is_told_in_the_question(path: Path) -> None:
    """A register that is known to the author alone would make the better routine wrong for the reader."""
    for pair in pairs_in(path):
        entry = pair.entry
        if any(value is not None for value in (entry.a, entry.x_value, entry.y, entry.c)) or entry.decimal:
            assert entry.known, pair.id
            assert entry.known.rstrip(".") in pair.question(), pair.id


@both
def test_the_code_cannot_end_its_block(path: Path) -> None:
    for pair in pairs_in(path):
        assert assembly_of(pair.question()) == pair.code.strip("\n"), pair.id
        assert assembly_of(pair.answer()) == pair.better.strip("\n"), pair.id


@needs_asar
@both
def test_both_sides_assemble(path: Path, assemblies: Mapping[str, Assembly]) -> None:
    bad = [
        f"{pair.id} {side}: {assemblies[text].errors}"
        for pair in pairs_in(path)
        for side, text in (("code", pair.code), ("better", pair.better))
        if assemblies[text].status != "ok"
    ]
    assert bad == []


@needs_asar
@both
def test_the_better_one_is_other_code_and_never_empty(path: Path, assemblies: Mapping[str, Assembly]) -> None:
    for pair in pairs_in(path):
        assert assemblies[pair.better].code, pair.id
        assert assemblies[pair.better].code != assemblies[pair.code].code, pair.id


@needs_asar
@both
def test_rows_for_bytes_get_shorter(path: Path, assemblies: Mapping[str, Assembly]) -> None:
    longer = [
        pair.id
        for pair in pairs_in(path)
        if pair.goal == "bytes" and len(assemblies[pair.better].code) >= len(assemblies[pair.code].code)
    ]
    assert longer == []


@needs_asar
@both
def test_every_pair_is_equal_and_cheaper_for_its_goal(path: Path, assemblies: Mapping[str, Assembly]) -> None:
    """Executed under the declared entry state; each immediate is as wide as it is written."""
    bad: list[str] = []
    for pair in pairs_in(path):
        checker = Checker(Routine.of(assemblies[pair.code]), Contract((pair.entry,), pair.live))
        report = checker.check(Routine.of(assemblies[pair.better]))
        if not report.cheaper(pair.goal) or report.states < STATES // 2 or checker.notes or report.notes:
            bad.append(f"{pair.id}: {report.verdict}, {report.why} {checker.notes} {report.notes}")
    assert bad == []


def bare(code: str) -> str:
    """What is left of a routine without labels, numbers, case, spacing and size suffixes."""
    text = skeleton(code)
    for label in dict.fromkeys(re.findall(r"^([a-z_.][a-z0-9_]*):", text, re.MULTILINE)):
        text = re.sub(rf"(?<![\w.]){re.escape(label)}\b", "label", text)
    lines = (re.sub(r"^((label:|[+-]+)\s*)+", "", line).replace(" ", "") for line in text.splitlines())
    return "\n".join(re.sub(r"(?<=[a-z])[+-]+$", "label", line) for line in lines if line)


def test_bare_forgets_labels_and_numbers() -> None:
    assert bare("loop:\n  LDA  $10, x ; c\n  dex\n  bne loop") == bare("- lda.w $7E20,x\n dex\n bne -")
    assert bare("lda $10\nsta $11") != bare("lda $10,x\nsta $11")


def test_no_case_of_the_suite_stands_in_the_curated_rows() -> None:
    trained = {bare(pair.code): pair.id for pair in pairs_in(CURATED)}
    shared = [f"{pair.id} is {trained[bare(pair.code)]}" for pair in pairs_in(SUITE) if bare(pair.code) in trained]
    assert shared == []


def test_no_reference_answer_of_the_suite_is_the_answer_of_a_row_with_the_same_numbers() -> None:
    trained = {normalised(pair.better): pair.id for pair in pairs_in(CURATED)}
    shared = [f"{p.id} is {trained[normalised(p.better)]}" for p in pairs_in(SUITE) if normalised(p.better) in trained]
    assert shared == []


def test_no_shot_of_the_fewshot_prompt_is_a_case() -> None:
    cases = {normalised(pair.code): pair.id for pair in pairs_in(SUITE)}
    for shot in Catalog.load(Workspace.find()).experts["din"].versions["v3-fewshot"].shots:
        assert normalised(assembly_of(shot.user) or "") not in cases
