"""Single-step vectors: the golden ones pass, differences are told in full, bad files are refused with their case."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.snes.cpu.opcodes import OPCODES
from afs_mlx.snes.vectors import Mismatch, Stepper, Vector, read_vectors, vector_files, verify

FOLDER = Path(__file__).parents[1] / "golden" / "65816"
GOLDEN = FOLDER / "vectors"

# inc $10 at $8000 of bank 0 in native mode with 8 bits: the byte $7F becomes $80.
INIT = [0x8000, 0x01FF, 0x30, 0x1234, 0x05, 0x06, 0x7E, 0x0000, 0x00, 0]
FINAL = [0x8002, 0x01FF, 0xB0, 0x1234, 0x05, 0x06, 0x7E, 0x0000, 0x00, 0]
RAM = [[0x8000, 0xE6], [0x8001, 0x10], [0x0010, 0x7F]]
CASE = [INIT, RAM, FINAL, [[0x0010, 0x80]], 5, "rrr-w", [0x8000, 0x8001, 0x0010, 0x0010]]
INIT_AT, RAM_AT, FINAL_AT, WRITES_AT, CYCLES_AT, KINDS_AT, ADDRESSES_AT = range(7)

WDM_RAM = [[0x8000, 0x42], [0x8001, 0x99]]
WDM_FINAL = [0x8002, *INIT[1:]]


def changed(place: int, value: Any, case: list[Any] = CASE) -> list[Any]:
    return [*case[:place], value, *case[place + 1 :]]


def with_cycles(cycles: int, case: list[Any] = CASE) -> list[Any]:
    """The case cut off or made longer by internal cycles."""
    kinds = case[KINDS_AT].ljust(cycles, "-")[:cycles]
    addresses = case[ADDRESSES_AT][: len(kinds.replace("-", ""))]
    return changed(CYCLES_AT, cycles, changed(KINDS_AT, kinds, changed(ADDRESSES_AT, addresses, case)))


def register(place: int, value: Any, state: list[Any]) -> list[Any]:
    return [*state[:place], value, *state[place + 1 :]]


def differences(case: list[Any]) -> list[str]:
    return Stepper().differences(Vector.read(case))


def write(path: Path, cases: Any) -> Path:
    path.write_text(json.dumps(cases), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that makes the golden vectors."""
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the golden vectors --------------------------------------------------------------------------


def test_every_golden_vector_passes() -> None:
    result = verify(GOLDEN)
    assert result.mismatches == ()
    assert (result.passed, result.total, result.files) == (5992, 5992, 32)


def test_the_golden_vectors_cover_all_opcodes_modes_and_widths() -> None:
    seen = {
        (dict(vector.ram)[vector.init.address], vector.init.e, vector.init.p >> 4 & 3)
        for path in vector_files(GOLDEN)
        for vector in read_vectors(path)
    }
    assert seen == {(opcode.code, 0, widths) for opcode in OPCODES for widths in range(4)} | {
        (opcode.code, 1, 3) for opcode in OPCODES
    }


@pytest.mark.parametrize("mode", ["n", "e"])
def test_the_script_makes_the_golden_vectors_again(mode: str, script: ModuleType) -> None:
    for row in range(16):
        made = script.make_file(row, mode).encode()
        assert made == (GOLDEN / f"{row:x}.{mode}.json").read_bytes(), f"row {row:x}: run {FOLDER / 'make_vectors.py'}"


# ---- differences ---------------------------------------------------------------------------------


def test_a_right_case_has_no_differences() -> None:
    assert differences(CASE) == []


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (changed(FINAL_AT, register(0, 0x8003, FINAL)), ["pc $8003 expected, $8002 found"]),
        (
            changed(FINAL_AT, register(2, 0x30, register(3, 0x1235, FINAL))),
            ["p $0030 expected, $00B0 found", "a $1235 expected, $1234 found"],
        ),
        (changed(FINAL_AT, register(9, 1, FINAL)), ["e $0001 expected, $0000 found"]),
        (with_cycles(6), ["cycles 6 expected, 5 performed"]),
        (
            changed(KINDS_AT, "rrrrw", changed(ADDRESSES_AT, [0x8000, 0x8001, 0x10, 0x10, 0x10])),
            ["bus cycle 4: read $000010 expected, internal performed"],
        ),
        (
            changed(KINDS_AT, "rr-rw"),
            ["bus cycle 3: internal expected, read $000010 performed"],
        ),
        (
            changed(ADDRESSES_AT, [0x8000, 0x8001, 0x0010, 0x0011]),
            ["bus cycle 5: write $000011 expected, write $000010 performed"],
        ),
        (changed(WRITES_AT, [[0x10, 0x81]]), ["$000010: $81 expected, $80 found"]),
        (changed(WRITES_AT, []), ["$000010: $7F expected, $80 found"]),
        (changed(WRITES_AT, [[0x10, 0x80], [0x20, 0x05]]), ["$000020: $05 expected, not written"]),
        (changed(WRITES_AT, [[0x10, 0x80], [0x20, 0x00]]), ["$000020: $00 expected, not written"]),
        (
            with_cycles(4, changed(WRITES_AT, [[0x10, 0x7E]], changed(FINAL_AT, register(0, 0, FINAL)))),
            ["pc $0000 expected, $8002 found", "cycles 4 expected, 5 performed", "$000010: $7E expected, $80 found"],
        ),
    ],
)  # fmt: skip
def test_differences_are_told(case: list[Any], expected: list[str]) -> None:
    assert differences(case) == expected


def test_a_byte_written_with_its_own_value_may_be_left_out() -> None:
    """`sta $10` where $10 already holds A: both kinds of files are right."""
    ram = [[0x8000, 0x85], [0x8001, 0x10], [0x0010, 0x34]]
    final = register(0, 0x8002, INIT)
    for writes in ([], [[0x0010, 0x34]]):
        assert differences([INIT, ram, final, writes, 3, "rrw", [0x8000, 0x8001, 0x0010]]) == []


def test_memory_is_zero_again_between_cases() -> None:
    """What one case read and wrote is not there for the next, which reads $0010 without naming it."""
    stepper = Stepper()
    assert stepper.differences(Vector.read(CASE)) == []
    unnamed = Vector.read(changed(RAM_AT, RAM[:2], changed(FINAL_AT, register(2, 0x30, FINAL))))
    assert stepper.differences(unnamed) == ["$000010: $80 expected, $01 found"]


def test_the_second_byte_of_wdm_may_be_internal_or_read() -> None:
    read = [INIT, WDM_RAM, WDM_FINAL, [], 2, "rr", [0x8000, 0x8001]]
    assert differences(read) == []
    internal = [INIT, WDM_RAM, WDM_FINAL, [], 2, "r-", [0x8000]]
    assert differences(internal) == []
    assert differences(changed(ADDRESSES_AT, [0x8000, 0x8002], read)) == [
        "bus cycle 2: read $008002 expected, read $008001 performed"
    ]


def test_the_exception_is_for_wdm_only() -> None:
    """`rep #$00` with an internal cycle in place of its second byte."""
    ram = [[0x8000, 0xC2], [0x8001, 0x00]]
    assert differences([INIT, ram, WDM_FINAL, [], 3, "r--", [0x8000]]) == [
        "bus cycle 2: internal expected, read $008001 performed"
    ]


def test_wai_and_stp_end_after_their_cycles() -> None:
    for opcode in (0xCB, 0xDB):
        final = register(0, 0x8001, INIT)
        assert differences([INIT, [[0x8000, opcode]], final, [], 3, "r--", [0x8000]]) == []


# ---- verify --------------------------------------------------------------------------------------


def test_mismatches_name_file_and_case(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    wrong = with_cycles(6, changed(FINAL_AT, register(0, 0x8003, FINAL)))
    write(tmp_path / "deeper" / "e6.n.json", [CASE, wrong, CASE])
    write(tmp_path / "a.json", [CASE])
    result = verify(tmp_path)
    assert (result.passed, result.total, result.files) == (3, 4, 2)
    differences = ("pc $8003 expected, $8002 found", "cycles 6 expected, 5 performed")
    file = str(Path("deeper") / "e6.n.json")
    assert result.mismatches == (Mismatch(file, 1, differences),)
    assert str(result.mismatches[0]) == (
        f"{file} case 1: pc $8003 expected, $8002 found; cycles 6 expected, 5 performed"
    )


def test_the_first_mismatches_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    wrong = with_cycles(6)
    write(tmp_path / "a.json", [CASE, wrong, wrong])
    write(tmp_path / "b.json", [wrong] * 12)
    few = verify(tmp_path, first=3)
    assert (few.passed, few.total) == (1, 15)
    assert [(mismatch.file, mismatch.case) for mismatch in few.mismatches] == [
        ("a.json", 1),
        ("a.json", 2),
        ("b.json", 0),
    ]
    assert len(verify(tmp_path).mismatches) == 10
    assert verify(tmp_path, first=0).mismatches == ()


def test_files_are_counted_as_they_are_done(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.json", [CASE])
    calls: list[tuple[int, int]] = []
    verify(tmp_path, on_file=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_bad_file_ends_the_run_with_its_name(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [CASE])
    bad = write(tmp_path / "b.json", [CASE, CASE[:6]])
    with pytest.raises(AfsError, match="case 1: a case is a list of seven") as raised:
        verify(tmp_path)
    assert raised.value.where == str(bad)


# ---- bad files -----------------------------------------------------------------------------------


def test_a_folder_without_vectors(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("none here", encoding="utf-8")
    for folder, message in ((tmp_path, r"no vector files \(\*\.json\)"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(MissingError, match=message) as raised:
            verify(folder)
        assert raised.value.where == str(folder)


def test_files_without_a_case_prove_nothing(tmp_path: Path) -> None:
    write(tmp_path / "00.n.json", [])
    with pytest.raises(MissingError, match="no cases"):
        verify(tmp_path)


def test_one_file_can_be_verified(tmp_path: Path) -> None:
    result = verify(write(tmp_path / "00.n.json", [CASE, with_cycles(6)]))
    assert (result.passed, result.total, result.files) == (1, 2, 1)
    assert str(result.mismatches[0]) == "00.n.json case 1: cycles 6 expected, 5 performed"


@pytest.mark.parametrize("text", [b"", b"[", b"[[1,]]", b"\xff\xfe\xfa", b"[" * 100_000, b"[" + b"9" * 5000 + b"]"])
def test_what_is_no_json(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "00.n.json"
    path.write_bytes(text)
    with pytest.raises(AfsError, match="not valid JSON") as raised:
        read_vectors(path)
    assert raised.value.where == str(path)


@pytest.mark.parametrize("cases", [{}, "cases", 1, None, {"cases": [CASE]}])
def test_what_is_no_list(cases: Any, tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="a list of cases is expected"):
        read_vectors(write(tmp_path / "00.n.json", cases))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "00.n.json"
    folder.mkdir()
    with pytest.raises(AfsError, match="cannot read: ") as raised:
        read_vectors(folder)
    assert raised.value.where == str(folder)


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ({}, "a case is a list of seven: init, ram, final, writes, cycles, kinds, addrs"),
        (CASE[:6], "a case is a list of seven: init, ram, final, writes, cycles, kinds, addrs"),
        ([*CASE, 0], "a case is a list of seven: init, ram, final, writes, cycles, kinds, addrs"),
        (changed(INIT_AT, INIT[:9]), "init is a list of 10: pc, s, p, a, x, y, dbr, d, pbr, e"),
        (changed(INIT_AT, "registers"), "init is a list of 10: pc, s, p, a, x, y, dbr, d, pbr, e"),
        (changed(FINAL_AT, [*FINAL, 0]), "final is a list of 10: pc, s, p, a, x, y, dbr, d, pbr, e"),
        (changed(INIT_AT, register(0, 0x10000, INIT)), "init pc must be a number from 0 to 65535, not 65536"),
        (changed(INIT_AT, register(1, -1, INIT)), "init s must be a number from 0 to 65535, not -1"),
        (changed(INIT_AT, register(2, 256, INIT)), "init p must be a number from 0 to 255, not 256"),
        (changed(FINAL_AT, register(6, 256, FINAL)), "final dbr must be a number from 0 to 255, not 256"),
        (changed(FINAL_AT, register(8, 256, FINAL)), "final pbr must be a number from 0 to 255, not 256"),
        (changed(FINAL_AT, register(9, 2, FINAL)), "final e must be a number from 0 to 1, not 2"),
        (changed(INIT_AT, register(9, False, INIT)), "init e must be a number from 0 to 1, not False"),
        (changed(INIT_AT, register(3, 1.0, INIT)), "init a must be a number from 0 to 65535, not 1.0"),
        (changed(INIT_AT, register(4, "5", INIT)), "init x must be a number from 0 to 65535, not '5'"),
        (changed(INIT_AT, register(5, None, INIT)), "init y must be a number from 0 to 65535, not None"),
        (changed(RAM_AT, {}), "ram is a list of [address, byte]"),
        (changed(RAM_AT, [[0x8000]]), "ram is a list of [address, byte]"),
        (changed(RAM_AT, [0x8000, 0xE6]), "ram is a list of [address, byte]"),
        (changed(WRITES_AT, [[0x10, 0x80, 0]]), "writes is a list of [address, byte]"),
        (changed(RAM_AT, [[0x1000000, 0]]), "ram: an address must be a number from 0 to 16777215, not 16777216"),
        (changed(RAM_AT, [[0, 256]]), "ram: a byte must be a number from 0 to 255, not 256"),
        (changed(WRITES_AT, [[-1, 0]]), "writes: an address must be a number from 0 to 16777215, not -1"),
        (changed(WRITES_AT, [[0, True]]), "writes: a byte must be a number from 0 to 255, not True"),
        (changed(CYCLES_AT, "5"), "cycles must be a number from 0 to 64, not '5'"),
        (changed(CYCLES_AT, 5.5), "cycles must be a number from 0 to 64, not 5.5"),
        (changed(CYCLES_AT, True), "cycles must be a number from 0 to 64, not True"),
        (changed(CYCLES_AT, -1), "cycles must be a number from 0 to 64, not -1"),
        (changed(ADDRESSES_AT, "none"), "addrs is a list"),
        (changed(KINDS_AT, "rrr"), "kinds has 3 signs for 5 cycles"),
        (changed(ADDRESSES_AT, []), "addrs has 0 entries for 4 reads and writes"),
        (changed(KINDS_AT, "rrr-x"), "kinds is a text of r, w and -"),
        (changed(KINDS_AT, "RRR-W"), "kinds is a text of r, w and -"),
        (changed(KINDS_AT, list("rrr-w")), "kinds is a text of r, w and -"),
        (changed(ADDRESSES_AT, [0x1000000]), "an address must be a number from 0 to 16777215, not 16777216"),
        (changed(ADDRESSES_AT, [True]), "an address must be a number from 0 to 16777215, not True"),
    ],
)  # fmt: skip
def test_a_bad_case_is_refused_with_its_place(case: Any, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "e6.n.json", [CASE, CASE, case])
    with pytest.raises(AfsError) as raised:
        read_vectors(path)
    assert (raised.value.what, raised.value.where) == (f"case 2: {what}", str(path))
    assert raised.value.fix == "mend the file or take it out of the folder"
