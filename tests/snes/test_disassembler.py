"""Disassembling: the text gives the same bytes again, and the widths on every path, or a problem that says why not."""

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from afs_mlx.core.errors import UsageError
from afs_mlx.schema.optimisation import OptimisationPair, normalised
from afs_mlx.snes.asar import asar_path, assemble
from afs_mlx.snes.cpu.opcodes import OPCODES
from afs_mlx.snes.disassembler import Listing, disassemble
from afs_mlx.snes.grammar import MAX_LINES, check

ROOT = Path(__file__).parents[2]
needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

WIDTHS = [(True, True), (True, False), (False, True), (False, False)]


def listing_of(code: str, **entry: bool) -> Listing:
    return disassemble(bytes.fromhex(code), **entry)


def texts(listing: Listing) -> list[str]:
    return [line.text for line in listing.lines]


def messages(listing: Listing) -> list[str]:
    return [str(problem) for problem in listing.problems]


def state(listing: Listing, address: int) -> tuple[bool | None, bool | None]:
    return next((line.m8, line.x8) for line in listing.lines if line.address == address)


def assert_round_trips(pieces: Iterable[tuple[bytes, bool, bool]]) -> None:
    """Disassembles every piece where the one before it ended, and assembles all of them in as few calls as it takes."""
    image, rows = bytearray(), list[str]()
    for code, m8, x8 in pieces:
        listing = disassemble(code, 0x8000 + len(image), m8, x8)
        assert b"".join(line.code for line in listing.lines) == code
        # The byte between them keeps a label at the end of one from meeting one at the start of the next.
        text = [*listing.text().split("\n"), "db $ea"]
        if len(rows) + len(text) > MAX_LINES:
            assert_assembles(rows, bytes(image))
            image, rows = bytearray(), []
            text = [*disassemble(code, 0x8000, m8, x8).text().split("\n"), "db $ea"]
        rows += text
        image += code + b"\xea"
    assert_assembles(rows, bytes(image))


def assert_assembles(rows: list[str], code: bytes) -> None:
    result = assemble("\n".join(rows))
    assert (result.errors, result.warnings) == ((), ())
    assert result.code == code


BYTE_LOOP = "a2 1f 00 a9 00 9d 00 01 ca 10 f8 60"
PAIRED_STZ = "a2 1e 00 9e 00 01 9e 01 01 ca ca 10 f6 60"
WIDE_STZ = "c2 20 a2 1e 00 9e 00 01 ca ca 10 f9 e2 20 60"
MODE_MISMATCH = "c2 20 a2 1e 00 a9 00 9d 00 01 ca ca 10 f7 e2 20 60"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (BYTE_LOOP, "ldx #$001f|L8003:|lda #$00|sta $0100,x|dex|bpl L8003|rts"),
        (PAIRED_STZ, "ldx #$001e|L8003:|stz $0100,x|stz $0101,x|dex|dex|bpl L8003|rts"),
        (WIDE_STZ, "rep #$20|ldx #$001e|L8005:|stz $0100,x|dex|dex|bpl L8005|sep #$20|rts"),
    ],
)
def test_known_routines(code: str, expected: str) -> None:
    listing = listing_of(code, x8=False)
    assert [row.strip() for row in listing.text().split("\n")] == expected.replace("L", "label_").split("|")
    assert listing.problems == ()


def test_a_wrong_immediate_shows_as_the_processor_reads_it() -> None:
    """`lda #$00` was assembled with one byte and runs with two: the store is gone, and the loop ends elsewhere."""
    listing = listing_of(MODE_MISMATCH, x8=False)
    assert texts(listing)[2:4] == ["lda #$9d00", "brk #$01"]
    assert listing.problems == ()


def test_render() -> None:
    listing = listing_of("a9 8f 8d 00 21 80 01 00 10 80 6b", x8=False)
    assert listing.render() == "\n".join(
        [
            "008000  a9 8f        m8x16     lda #$8f",
            "008002  8d 00 21     m8x16     sta $2100               ; INIDISP",
            "008005  80 01        m8x16     bra label_8008",
            "008007  00                     db $00",
            "                             label_8008:",
            "008008  10 80        m8x16     db $10,$80              ; bpl $7f8a",
            "00800a  6b           m8x16     rtl",
            "; $008008: bpl leads out of the code, to $007f8a",
        ]
    )


@pytest.mark.parametrize(
    ("code", "entry", "address", "expected"),
    [
        ("c2 30 ea", (True, True), 0x8002, (False, False)),
        ("c2 20 ea", (True, True), 0x8002, (False, True)),
        ("e2 10 ea", (False, False), 0x8002, (False, True)),
        ("e2 cf ea", (False, False), 0x8002, (False, False)),
        ("08 e2 30 28 ea", (False, True), 0x8004, (False, True)),
        ("08 c2 30 08 e2 20 28 ea", (True, True), 0x8007, (False, False)),
        ("08 c2 30 48 5a e2 20 a3 01 7a c2 20 68 28 ea", (True, True), 0x800E, (True, True)),
        ("08 8b 4b ab c2 30 0b 2b ab 28 ea", (True, False), 0x800A, (True, False)),
        ("18 fb c2 30 ea", (True, True), 0x8004, (False, False)),
        ("38 fb ea", (False, False), 0x8002, (True, True)),
        ("38 fb c2 30 ea", (False, False), 0x8004, (True, True)),
        ("38 fb fb c2 10 ea", (False, False), 0x8005, (True, False)),
    ],
)
def test_widths_are_followed(
    code: str, entry: tuple[bool, bool], address: int, expected: tuple[bool | None, bool | None]
) -> None:
    listing = listing_of(code, m8=entry[0], x8=entry[1])
    assert state(listing, address) == expected
    assert listing.problems == ()


def test_emulation_mode_is_eight_bits_until_it_is_left() -> None:
    listing = listing_of("c2 30 a9 01 18 fb a9 01 c2 30 a9 02 01", m8=False, x8=False, emulation=True)
    assert texts(listing) == ["rep #$30", "lda #$01", "clc", "xce", "lda #$01", "rep #$30", "lda #$0102"]
    assert listing.problems == ()


@pytest.mark.parametrize(
    ("code", "address", "expected", "problem"),
    [
        ("28 ea", 0x8001, (None, None), "$008000: the widths after plp are not known; read on with m16 x16"),
        ("08 68 28 ea", 0x8003, (None, None), "$008002: the widths after plp"),
        ("08 9a 28 ea", 0x8003, (None, None), "$008002: the widths after plp"),
        ("a9 30 00 48 28 ea", 0x8005, (None, None), "$008004: the widths after plp"),
        ("28 e2 20 ea", 0x8003, (True, None), "$008000: the widths after plp"),
        ("28 48 08 c2 30 68 28 ea", 0x8007, (None, None), "$008006: the widths after plp"),
        ("fb ea", 0x8001, (None, None), "$008000: the carry before xce is not known"),
        ("18 ea fb ea", 0x8003, (None, None), "$008002: the carry before xce is not known"),
        ("fb c2 30 ea", 0x8003, (None, None), "$008000: the carry before xce is not known"),
        ("fb e2 30 ea", 0x8003, (True, True), "$008000: the carry before xce is not known"),
    ],
)
def test_what_is_not_known_is_said(
    code: str, address: int, expected: tuple[bool | None, bool | None], problem: str
) -> None:
    listing = listing_of(code, m8=False, x8=False)
    assert state(listing, address) == expected
    assert any(message.startswith(problem) for message in messages(listing)), messages(listing)


def test_unknown_widths_are_read_on_with_the_last_ones() -> None:
    listing = listing_of("28 a9 34 12 a2 01 60", m8=False, x8=True)
    assert texts(listing) == ["plp", "lda #$1234", "ldx #$01", "rts"]
    assert "m?x?" in listing.render()


def test_paths_that_meet_with_different_widths() -> None:
    """One problem where they meet, one at the immediate, none at the others."""
    listing = listing_of("f0 02 c2 20 85 10 ea a9 34 12 60")
    assert messages(listing) == [
        "$008004: reached with A 8 and 16 bits wide",
        "$008007: reached with A 8 and 16 bits wide; its immediate is read as 16 bits",
    ]
    assert [state(listing, address) for address in (0x8002, 0x8004, 0x8007)] == [
        (True, True),
        (None, True),
        (None, True),
    ]


def test_paths_that_meet_with_the_same_widths() -> None:
    assert listing_of("c2 20 f0 04 e2 20 c2 20 a9 34 12 60").problems == ()


def test_a_loop_that_pushes_forgets_what_lies_below() -> None:
    assert listing_of("08 48 ca d0 fc 28 60").problems[0].message.startswith("the widths after plp are not known")
    assert listing_of("08 ca d0 fd c2 20 28 a9 01 60").problems == ()


def test_a_subroutine_that_changes_widths() -> None:
    listing = listing_of("20 08 80 a9 34 12 60 ea c2 20 60")
    assert texts(listing) == ["jsr label_8008", "lda #$1234", "rts", "db $ea", "rep #$20", "rts"]
    assert listing.problems == ()


def test_a_subroutine_that_keeps_widths_on_every_path() -> None:
    listing = listing_of("20 06 80 a9 12 60 08 f0 03 c2 20 ea 28 60")
    assert texts(listing)[1] == "lda #$12"
    assert state(listing, 0x8003) == (True, True)
    # Only inside it do the paths meet with different widths.
    assert messages(listing) == ["$00800c: reached with A 8 and 16 bits wide"]


def test_a_subroutine_called_in_two_states_returns_to_each_in_its_own() -> None:
    listing = listing_of("20 0c 80 c2 20 20 0c 80 a9 34 12 60 08 28 60")
    assert texts(listing)[3] == "lda #$1234"
    assert state(listing, 0x8003) == (True, True)
    assert state(listing, 0x8008) == (False, True)
    assert messages(listing) == ["$00800c: reached with A 8 and 16 bits wide"]


def test_a_subroutine_that_returns_in_two_states() -> None:
    listing = listing_of("20 05 80 ea 60 f0 02 c2 20 60")
    assert state(listing, 0x8003) == (None, True)


def test_recursion_and_subroutines_without_return() -> None:
    assert texts(listing_of("20 04 80 60 f0 03 20 04 80 60"))[-1] == "rts"
    listing = listing_of("20 05 80 a9 12 80 fe")
    assert texts(listing) == ["jsr label_8005", "lda #$12", "bra label_8005"]
    assert messages(listing) == [
        "$008005: no return was found from here; widths after a call are taken as unchanged",
    ]


def test_a_return_to_a_pushed_address_is_none_to_the_caller() -> None:
    listing = listing_of("20 06 80 a9 12 60 c2 20 f4 00 90 60")
    assert texts(listing)[1] == "lda #$12"
    assert "no return was found" in messages(listing)[0]


def test_a_long_call_and_its_mirror() -> None:
    listing = listing_of("22 08 80 00 a9 34 12 60 c2 20 6b")
    assert texts(listing)[:2] == ["jsl label_8008", "lda #$1234"]
    listing = listing_of("22 08 80 80 a9 34 12 60 c2 20 6b")
    assert texts(listing)[:2] == ["jsl $808008", "lda #$1234"]
    assert listing.problems == ()


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("20 00 90 60", "$008000: jsr calls $009000, outside the code; widths are taken as unchanged by it"),
        ("22 00 80 01 60", "$008000: jsl calls $018000, outside the code"),
        ("fc 00 90 60", "$008000: jsr calls through a pointer"),
        ("4c 00 90", "$008000: jmp leads out of the code, to $009000"),
        ("5c 00 80 7e", "$008000: jml leads out of the code, to $7e8000"),
        ("80 80", "$008000: bra leads out of the code, to $007f82"),
        ("82 00 90", "$008000: brl leads out of the code, to $001003"),
        ("ea ad 00", "$008001: lda is cut off by the end of the code"),
        ("80 fd", "$008000: bra leads out of the code, to $007fff"),
        ("f0 01 ad 00 01 60", "$008003: reached inside the instruction at $008002, as brk"),
    ],
)
def test_problems(code: str, problem: str) -> None:
    assert any(message.startswith(problem) for message in messages(listing_of(code)))


def test_code_behind_a_skipping_opcode_is_followed_though_it_has_no_line() -> None:
    """`bit` hides `lda #$02` from the path that falls into it; both go on behind it."""
    listing = listing_of("f0 03 a9 01 2c a9 02 85 10 60")
    assert texts(listing) == ["db $f0,$03", "lda #$01", "bit $02a9", "sta $10", "rts"]
    assert listing.lines[0].comment == "beq $8005"
    assert messages(listing) == ["$008005: reached inside the instruction at $008004, as lda"]


def test_an_instruction_that_would_run_into_another_is_data() -> None:
    listing = listing_of("4c 04 80 ad ea ea 80 fb")
    assert texts(listing) == ["jmp label_8004", "db $ad", "nop", "nop", "bra label_8003"]
    assert messages(listing) == ["$008003: lda here runs into the instruction at $008004"]


def test_a_certain_path_goes_before_a_guess() -> None:
    """The branch is taken with known widths, what follows PLP is not: the bytes are read as the branch reads them."""
    listing = listing_of("c2 20 f0 03 e2 20 28 a9 34 12 60")
    assert texts(listing)[-2:] == ["lda #$1234", "rts"]
    assert state(listing, 0x8007) == (None, None)


@pytest.mark.parametrize("end", ["60", "6b", "40", "db", "6c 00 01", "7c 00 01", "dc 00 01", "4c 00 80", "80 fe"])
def test_what_lies_behind_an_end_is_data(end: str) -> None:
    rest = bytes(range(40))
    listing = disassemble(bytes.fromhex(end) + rest)
    assert [len(line.code) for line in listing.lines] == [len(bytes.fromhex(end)), 16, 16, 8]
    assert texts(listing)[1] == "db " + ",".join(f"${byte:02x}" for byte in rest[:16])
    assert all((line.m8, line.x8) == (None, None) for line in listing.lines[1:])


def test_labels_stand_at_targets_alone() -> None:
    listing = listing_of("f0 05 62 03 00 d0 f9 60 01 02 03", m8=False)
    assert [(line.address, line.label) for line in listing.lines if line.label] == [
        (0x8000, "label_8000"),
        (0x8007, "label_8007"),
        (0x8008, "label_8008"),
    ]
    assert texts(listing)[:3] == ["beq label_8007", "per label_8008", "bne label_8000"]


def test_a_branch_to_the_end_has_a_label_there() -> None:
    listing = listing_of("f0 01 ea")
    assert (listing.lines[-1].label, listing.lines[-1].code, listing.lines[-1].text) == ("label_8003", b"", "")
    assert listing.problems == ()
    # Behind the last byte of the bank there is nothing to put it on.
    listing = disassemble(bytes.fromhex("f0 01 ea"), 0xFFFD)
    assert texts(listing) == ["db $f0,$01", "nop"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ad 12 00", "lda.w $0012"),
        ("ad 12 01", "lda $0112"),
        ("a5 12", "lda $12"),
        ("af 12 00 00", "lda.l $000012"),
        ("af 34 12 00", "lda.l $001234"),
        ("af 34 12 7e", "lda $7e1234"),
        ("9f 34 12 00", "sta.l $001234,x"),
        ("b9 12 00", "lda $0012,y"),
        ("be 12 00", "ldx.w $0012,y"),
        ("b3 12", "lda ($12,s),y"),
        ("b7 12", "lda [$12],y"),
        ("c2 00", "rep #$00"),
        ("44 12 34", "mvp $12,$34"),
        ("f4 12 00", "pea $0012"),
        ("d4 12", "pei ($12)"),
        ("dc 34 12", "jml [$1234]"),
        ("7c 12 00", "jmp ($0012,x)"),
        ("42 ff", "wdm #$ff"),
        ("0a", "asl"),
        ("4c 12 00", "jmp $0012"),
        ("22 12 00 00", "jsl $000012"),
    ],
)
def test_texts(code: str, text: str) -> None:
    assert texts(listing_of(code)) == [text]


@pytest.mark.parametrize(
    ("code", "comment"),
    [
        ("8d 00 21", "INIDISP"),
        ("9d 00 21", "INIDISP"),
        ("8f 00 21 00", "INIDISP"),
        ("0c 00 21", "INIDISP"),
        ("8f 00 21 7e", ""),
        ("f4 00 21", ""),
        ("4c 00 21", ""),
        ("20 00 21", ""),
        ("6c 00 21", ""),
        ("ad 12 00", ""),
        ("a9 00", ""),
    ],
)
def test_registers_are_named(code: str, comment: str) -> None:
    assert listing_of(code).lines[0].comment == comment


def test_every_opcode_in_every_width_has_its_length() -> None:
    for m8, x8 in WIDTHS:
        for opcode in OPCODES:
            line = disassemble(bytes([opcode.code, 0x12, 0x34, 0x56]), 0x8000, m8, x8).lines[0]
            assert len(line.code) == 1 + opcode.operand_bytes(m8, x8), opcode
            assert check(line.text) == []
            name = line.comment.split()[0] if line.text.startswith("db ") else re.split(r"[ .]", line.text)[0]
            assert name == opcode.name
            assert (line.m8, line.x8) == (m8, x8)


@pytest.mark.parametrize(("org", "size"), [(0x8000, 0x8001), (0xFFFF, 2), (0x7E0001, 0x10000)])
def test_code_must_lie_in_one_bank(org: int, size: int) -> None:
    with pytest.raises(UsageError, match="leave the bank") as caught:
        disassemble(bytes(size), org)
    assert "lower org" in caught.value.fix


@pytest.mark.parametrize("org", [-1, 0x1000000])
def test_org_must_be_an_address(org: int) -> None:
    with pytest.raises(UsageError, match="not an address"):
        disassemble(b"\xea", org)


def test_a_full_bank_and_no_code() -> None:
    assert len(disassemble(b"\xea" * 0x10000, 0x7E0000).lines) == 0x10000
    assert disassemble(b"") == Listing((), ())


def test_hostile_code_ends_and_says_that_it_was_cut_short() -> None:
    """Calls all over the code, with widths changed between them."""
    chance = random.Random(1)
    rows = (
        b"\x20"
        + chance.randrange(0x8000, 0xFFFF).to_bytes(2, "little")
        + chance.choice([b"\xc2\x20", b"\xe2\x30", b"\x28"])
        for _ in range(3000)
    )
    code = b"".join(rows)
    listing = disassemble(code)
    assert b"".join(line.code for line in listing.lines) == code
    assert any("too many ways" in message for message in messages(listing))


def random_pieces(seed: int) -> Iterator[tuple[bytes, bool, bool]]:
    """Bytes of any kind, then bytes that branch, call, and change widths more often than chance has it."""
    chance = random.Random(seed)
    flow = bytes.fromhex("10 30 50 70 80 82 90 b0 d0 f0 20 22 4c 5c 62 08 28 48 68 c2 e2 fb 18 38 a9 a2")
    for number in range(120):
        code = bytearray(chance.randbytes(chance.randrange(1, 60)))
        if number % 2:
            # Distances and addresses that stay within a short piece.
            code = bytearray(
                chance.choice(flow) if chance.random() < 0.4 else chance.choice([0, 1, 2, 5, 9, 0x80, 0xF8, 0xFD])
                for _ in code
            )
        yield bytes(code), *chance.choice(WIDTHS)


@needs_asar
@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_round_trip(seed: int) -> None:
    assert_round_trips(random_pieces(seed))


@needs_asar
def test_every_opcode_round_trips() -> None:
    for operand in ("12 34 56", "12 00 00", "00 80 00", "fe ff ff", "00 00 00"):
        assert_round_trips(
            (bytes([opcode.code]) + bytes.fromhex(operand), m8, x8) for opcode in OPCODES for m8, x8 in WIDTHS[::3]
        )


@needs_asar
@pytest.mark.parametrize("org", [0x8000, 0x80FFC0, 0x018123, 0x7D8000, 0xFFFFC0])
def test_any_org_round_trips(org: int) -> None:
    bank = org >> 16
    jumps = bytes([0x4C, *(org + 3 & 0xFFFF).to_bytes(2, "little"), 0x22, *(org + 9).to_bytes(3, "little")])
    code = jumps + bytes([0xF0, 0xF4, 0x5C, *(org & 0xFFFF).to_bytes(2, "little"), bank ^ 0x80, 0x6B, 1, 2])
    listing = disassemble(code, org)
    assert "bank" not in listing.text()
    assert f"jsl label_{org + 9 & 0xFFFF:04x}" in listing.text()
    assert assemble(listing.text(), org).code == code


def routines() -> list[tuple[str, bool, bool]]:
    """Every routine of the curated set, with its entry widths."""
    rows = (ROOT / "data/curated/din-v2.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [OptimisationPair.model_validate_json(row) for row in rows]
    return [(code, pair.entry.m == 8, pair.entry.x == 8) for pair in pairs for code in (pair.code, pair.better)]


def assembled(codes: list[str]) -> list[tuple[int, bytes]]:
    """All of them in one call: their labels get a number, and a table at the end says where each one is."""
    rows = []
    for number, code in enumerate(codes):
        numbered = code
        for label in re.findall(r"^\s*(\w+):", code, re.MULTILINE):
            numbered = re.sub(rf"\b{label}\b", f"{label}_{number}", numbered)
        rows.append(f"at{number}:\n{numbered}")
    table = "\n".join(f"dw at{number}" for number in range(len(codes)))
    result = assemble("\n".join([*rows, "table:", table]))
    assert result.status == "ok", result.errors
    size = 2 * len(codes)
    starts = [int.from_bytes(result.code[-size:][at : at + 2], "little") for at in range(0, size, 2)]
    ends = [*starts[1:], 0x8000 + len(result.code) - size]
    return [(start, result.code[start - 0x8000 : end - 0x8000]) for start, end in zip(starts, ends, strict=True)]


@needs_asar
def test_curated_routines_round_trip_and_read_as_they_were_written() -> None:
    """Assembled, disassembled and assembled again; in between, instruction for instruction what the author wrote."""
    all_routines = routines()
    assert len(all_routines) > 400
    for first in range(0, len(all_routines), 100):
        batch = all_routines[first : first + 100]
        codes = assembled([text for text, _, _ in batch])
        for (org, code), (text, m8, x8) in zip(codes, batch, strict=True):
            lines = disassemble(code, org, m8, x8).lines
            assert [line.text.split()[0].partition(".")[0] for line in lines if line.text] == mnemonics(text)
        assert_round_trips((code, m8, x8) for (_, code), (_, m8, x8) in zip(codes, batch, strict=True))


def mnemonics(text: str) -> list[str]:
    lines = (re.sub(r"^((\.?\w+:|[-+]+) ?)+", "", line) for line in normalised(text).splitlines())
    return [re.split(r"[ .]", line)[0] for line in lines if line]
