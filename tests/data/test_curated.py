"""The curated rows and the suite: every routine assembles, the better one is cheaper, and neither knows the other.

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
def test_every_case_of_the_suite_can_be_passed(assemblies: Mapping[str, Assembly]) -> None:
    """The scorer asks for fewer bytes whatever the goal; a case whose reference fails would cap the score below 1."""
    failing = [
        pair.id for pair in pairs_in(SUITE) if len(assemblies[pair.better].code) >= len(assemblies[pair.code].code)
    ]
    assert failing == []


ACCUMULATOR = frozenset({"lda", "ora", "and", "eor", "adc", "sbc", "cmp", "bit"})
INDEX = frozenset({"ldx", "ldy", "cpx", "cpy"})


def width_problems(code: str, m: int, x: int) -> list[str]:
    """Immediates whose digits contradict the width that REP and SEP have set, followed line by line."""
    widths: dict[str, int | None] = {"m": m, "x": x}
    found: list[str] = []
    for line in normalised(code).splitlines():
        words = re.sub(r"^(\S+:|[+-]+)\s*", "", line).split()
        if not words:
            continue
        name, suffix = words[0].partition(".")[::2]
        operand = words[1] if len(words) > 1 else ""
        if name in ("rep", "sep"):
            bits = int(operand.removeprefix("#").replace("$", "0x").replace("%", "0b"), 0)
            width = 16 if name == "rep" else 8
            widths |= {key: width for key, bit in (("m", 0x20), ("x", 0x10)) if bits & bit}
        elif name in ("plp", "xce", "rti"):
            widths = {"m": None, "x": None}
        elif operand.startswith("#") and name in ACCUMULATOR | INDEX:
            number = operand[1:]
            digits = {"$": 4, "%": 1}.get(number[0], 0) * (len(number) - 1)
            written = {"b": 8, "w": 16}.get(suffix) or (digits if number[0] in "$%" else None)
            wanted = widths["m" if name in ACCUMULATOR else "x"]
            if wanted is not None and written is not None and written != wanted:
                found.append(f"{line} (written for {written} bits, {wanted} are set)")
    return found


@both
def test_immediates_are_as_wide_as_the_registers(path: Path) -> None:
    """Asar sizes an immediate by its digits: a wrong width assembles and runs into its own operand."""
    bad = [
        f"{pair.id} {side}: {problem}"
        for pair in pairs_in(path)
        for side, text in (("code", pair.code), ("better", pair.better))
        for problem in width_problems(text, pair.entry.m, pair.entry.x)
    ]
    assert bad == []


def test_the_width_check_can_fail() -> None:
    assert width_problems("lda #$0000\nldx #$00", 8, 16) == [
        "lda #$0000 (written for 16 bits, 8 are set)",
        "ldx #$00 (written for 8 bits, 16 are set)",
    ]
    assert width_problems("rep #$20\nlda #$0000\nsep #$30\n- lda.b #$00\nldx #$00", 8, 16) == []
    assert width_problems("plp\nlda #$0000", 8, 8) == []


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
