"""The golden vectors see planted bugs: each mutant of the 65816 core differs from them, the core as it is does not."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import afs_mlx.snes.vectors as vectors_module
from afs_mlx.snes.vectors import Vector, read_vectors, vector_files

SOURCE = Path(vectors_module.__file__).parent
GOLDEN = Path(__file__).parents[1] / "golden" / "65816" / "vectors"


class Mutant(NamedTuple):
    """A bug: in a file of the core, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    # ---- flags
    Mutant("adc-v-ignores-signs", "reads.py", "~(a ^ value) & (a ^ binary_top)", "(a ^ binary_top)"),
    Mutant("adc-v-after-decimal-correction", "reads.py", "(a ^ binary_top)", "(a ^ total)"),
    Mutant("adc-c-at-the-mask", "reads.py", "cpu.c = total > mask", "cpu.c = total >= mask"),
    Mutant("bit-immediate-z-without-a", "reads.py", "value & cpu.a & width.mask == 0", "value == 0"),
    Mutant(
        "bit-immediate-sets-n", "reads.py", "cpu.z = value & cpu.a & width.mask == 0",
        "cpu.z = value & cpu.a & width.mask == 0\n        cpu.n = value >= width.sign",
    ),
    Mutant("bit-v-from-the-top-bit", "reads.py", "cpu.v = value & sign >> 1 != 0", "cpu.v = value & sign != 0"),
    Mutant(
        "cmp-c-of-equal", "reads.py", "(cpu.a & mask) - value\n        cpu.c = difference >= 0",
        "(cpu.a & mask) - value\n        cpu.c = difference > 0",
    ),
    Mutant("cpy-compares-x", "reads.py", "difference = cpu.y - value", "difference = cpu.x - value"),
    Mutant(
        "ror-clears-n", "modifies.py", "cpu.c = value & 1 != 0\n        cpu.n = rotated >= sign",
        "cpu.c = value & 1 != 0\n        cpu.n = False",
    ),
    Mutant("lsr-keeps-n", "modifies.py", "        cpu.n = False\n", ""),
    Mutant("trb-toggles", "modifies.py", "return value & ~cpu.a", "return value ^ cpu.a & mask"),
    Mutant("xba-flags-of-the-word", "transfers.py", "set_nz(cpu, cpu.a & 0xFF, BYTE)", "set_nz(cpu, cpu.a, WORD)"),
    Mutant("plb-keeps-flags", "stack.py", "    set_nz(cpu, cpu.dbr, BYTE)\n", ""),
    Mutant("brk-keeps-decimal", "control.py", "    cpu.decimal = False\n", ""),
    # ---- decimal digits
    Mutant("adc-digit-ten-stays", "reads.py", "digit += 6 if digit > 9 else 0", "digit += 6 if digit > 10 else 0"),
    Mutant("adc-digit-corrected-by-carry-only", "reads.py", "6 if digit > 9 else 0", "6 if digit > 15 else 0"),
    Mutant("sbc-digit-corrected-by-5", "reads.py", "digit -= 0 if carry else 6", "digit -= 0 if carry else 5"),
    Mutant("decimal-low-byte-only", "reads.py", "cpu.c, width.bits, subtract)", "cpu.c, 8, subtract)"),
    # ---- widths
    Mutant(
        "tax-as-wide-as-m", "transfers.py", "cpu.x = cpu.a & width.mask",
        "cpu.x = cpu.a & (0xFF if cpu.m8 else width.mask)",
    ),
    Mutant(
        "txa-keeps-the-high-byte", "transfers.py", "value = cpu.x & width.mask",
        "value = (cpu.x | (cpu.a & 0xFF00 if cpu.x8 else 0)) & width.mask",
    ),
    Mutant("sep-keeps-high-bytes", "core.py", "            self.x &= 0xFF\n", ""),
    Mutant("tsx-as-wide-as-m", "instructions.py", "tax tay tsx txy tyx", "tax tay txy tyx"),
    Mutant("cpx-immediate-as-wide-as-m", "opcodes.py", "cpx #x ", "cpx #m "),
    Mutant(
        "pld-n-of-the-low-byte", "stack.py", "set_nz(cpu, cpu.d, WORD)\n    cpu.settle_stack()",
        "set_nz(cpu, cpu.d, WORD)\n    cpu.n = cpu.d & 0x80 != 0\n    cpu.settle_stack()",
    ),
    # ---- wraps
    Mutant("no-page-wrap-in-emulation", "addressing.py", "if cpu.e and not cpu.d & 0xFF:", "if False:"),
    Mutant("page-wrap-in-native", "addressing.py", "if cpu.e and not cpu.d & 0xFF:", "if not cpu.d & 0xFF:"),
    Mutant("no-pointer-quirk", "addressing.py", "if cpu.e and cpu.d & 0xFF:", "if False:"),
    Mutant(
        "long-pointer-wraps-in-its-page", "addressing.py", "middle = cpu.read(at + 1 & 0xFFFF)",
        "middle = cpu.read(_direct_page(cpu, operand + 1))",
    ),
    Mutant("direct-page-leaves-bank-0", "addressing.py", "direct, direct, BANK_0", "direct, direct, MEMORY"),
    Mutant("stack-relative-leaves-bank-0", "addressing.py", "stack_relative, BANK_0", "stack_relative, MEMORY"),
    Mutant("absolute-data-in-bank-0", "addressing.py", "absolute, absolute, MEMORY", "absolute, absolute, BANK_0"),
    Mutant(
        "index-stays-in-its-bank", "addressing.py", "return (cpu.dbr << 16) + base + index & 0xFFFFFF",
        "return cpu.dbr << 16 | base + index & 0xFFFF",
    ),
    Mutant(
        "operand-from-the-next-bank", "core.py", "bank | pc + 1 + place & 0xFFFF", "bank + pc + 1 + place & 0xFFFFFF",
    ),
    Mutant("jmp-pointer-over-the-bank", "control.py", "bank | offset + 1 & 0xFFFF", "bank + offset + 1 & 0xFFFFFF"),
    # ---- cycles
    Mutant(
        "penalty-for-d-instead-of-dl", "addressing.py",
        "def _idle_if_unaligned(cpu: Cpu) -> None:\n    if cpu.d & 0xFF:",
        "def _idle_if_unaligned(cpu: Cpu) -> None:\n    if cpu.d:",
    ),
    Mutant("pei-without-penalty", "stack.py", "    if cpu.d & 0xFF:\n        cpu.idle()\n", ""),
    Mutant("no-penalty-for-crossing", "addressing.py", "not cpu.x8 or (base & 0xFF) + index > 0xFF", "not cpu.x8"),
    Mutant("penalty-below-crossing", "addressing.py", "(base & 0xFF) + index > 0xFF", "(base & 0xFF) + index >= 0xFF"),
    Mutant("no-penalty-for-wide-y", "addressing.py", "not cpu.x8 or (base & 0xFF) + cpu.y", "(base & 0xFF) + cpu.y"),
    Mutant(
        "store-without-penalty", "addressing.py", "    cpu.idle()\n    return (cpu.dbr << 16) + operand + cpu.x",
        "    if not cpu.x8 or (operand & 0xFF) + cpu.x > 0xFF:\n        cpu.idle()\n"
        "    return (cpu.dbr << 16) + operand + cpu.x",
    ),
    Mutant("no-branch-penalty", "control.py", "if cpu.e and (target ^ cpu.pc)", "if False and (target ^ cpu.pc)"),
    Mutant("branch-penalty-in-native", "control.py", "if cpu.e and (target ^ cpu.pc)", "if (target ^ cpu.pc)"),
    Mutant("rts-an-idle-short", "control.py", "    cpu.idle()\n    cpu.pc = last + 1", "    cpu.pc = last + 1"),
    Mutant("wai-an-idle-short", "control.py", "    cpu.idle()\n    raise Stopped", "    raise Stopped"),
    # ---- order on the bus
    Mutant(
        "modify-writes-low-first", "instructions.py",
        "cpu.write(high, value >> 8)\n        cpu.write(at, value & 0xFF)",
        "cpu.write(at, value & 0xFF)\n        cpu.write(high, value >> 8)",
    ),
    Mutant(
        "jsl-fetches-before-it-pushes", "control.py", "cpu.push_new(cpu.pbr)\n    cpu.idle()\n    bank = cpu.fetch()",
        "bank = cpu.fetch()\n    cpu.push_new(cpu.pbr)\n    cpu.idle()",
    ),
    Mutant(
        "jsr-indexed-idles-before-it-fetches", "control.py", "    operand |= cpu.fetch() << 8\n    cpu.idle()\n",
        "    cpu.idle()\n    operand |= cpu.fetch() << 8\n",
    ),
    # ---- the stack in emulation mode
    Mutant(
        "push-leaves-page-1", "core.py", "self.s = 0x0100 | self.s - 1 & 0xFF if self.e else self.s - 1 & 0xFFFF",
        "self.s = self.s - 1 & 0xFFFF",
    ),
    Mutant("plb-stays-in-page-1", "stack.py", "cpu.dbr = cpu.pull_new()", "cpu.dbr = cpu.pull()"),
    Mutant("pea-stays-in-page-1", "stack.py", "cpu.push_new(value >> 8)", "cpu.push(value >> 8)"),
    Mutant("tcs-leaves-page-1", "transfers.py", "    cpu.s = cpu.a\n    cpu.settle_stack()\n", "    cpu.s = cpu.a\n"),
    Mutant("rti-pulls-a-bank", "control.py", "    if not cpu.e:\n        cpu.pbr", "    if True:\n        cpu.pbr"),
    # ---- what goes where
    Mutant("xce-keeps-c", "flags.py", "cpu.c, cpu.e = cpu.e, cpu.c", "cpu.e = cpu.c"),
    Mutant("xce-keeps-wide-index", "flags.py", "    cpu.adopt_mode()\n", ""),
    Mutant("per-from-the-instruction", "stack.py", "cpu.pc + operand & 0xFFFF", "cpu.pc - 3 + operand & 0xFFFF"),
    Mutant("mvn-counts-down", "control.py", "_move(cpu, operand, 1)", "_move(cpu, operand, -1)"),
    Mutant("mvp-counts-up", "control.py", "_move(cpu, operand, -1)", "_move(cpu, operand, 1)"),
    Mutant("move-keeps-dbr", "control.py", "    cpu.dbr = destination\n", ""),
    Mutant(
        "move-with-banks-exchanged", "control.py", "source, destination = operand >> 8, operand & 0xFF",
        "destination, source = operand >> 8, operand & 0xFF",
    ),
    Mutant("move-ends-at-zero", "control.py", "if cpu.a != 0xFFFF:", "if cpu.a not in (0, 0xFFFF):"),
    Mutant(
        "jmp-indexed-in-bank-0", "control.py", "_word_in_bank(cpu, cpu.pbr << 16, operand + cpu.x)\n\n",
        "_word_in_bank(cpu, 0, operand + cpu.x)\n\n",
    ),
    Mutant(
        "jml-pointer-in-the-program-bank", "control.py", "target = _word_in_bank(cpu, 0,",
        "target = _word_in_bank(cpu, cpu.pbr << 16,",
    ),
    Mutant(
        "jsr-pushes-the-next", "control.py",
        "last = cpu.pc - 1 & 0xFFFF\n    cpu.push(", "last = cpu.pc\n    cpu.push(",
    ),
    Mutant("brk-vector-of-nmi", "control.py", "0xFFE6", "0xFFEA"),
    Mutant("cop-vector-of-brk-in-emulation", "control.py", "0xFFF4 if", "0xFFFE if"),
]  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> list[Vector]:
    return [vector for path in vector_files(GOLDEN) for vector in read_vectors(path)]


@pytest.fixture
def package(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the core under another name, whose modules are forgotten afterwards."""
    mutant = getattr(request.node, "callspec", None)
    name = "core_" + (mutant.id if mutant else "as_it_is").replace("-", "_")
    folder = tmp_path / name
    shutil.copytree(SOURCE / "cpu", folder / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SOURCE / "vectors.py", folder)
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("afs_mlx.snes.cpu", f"{name}.cpu"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def stepper(package: Path) -> Any:
    """A Stepper whose chip is the copied core, not the one that is tested elsewhere."""
    made = importlib.import_module(f"{package.name}.vectors").Stepper()
    chip = sys.modules[type(made.cpu).__module__].__file__
    assert chip is not None
    assert Path(chip).is_relative_to(package)
    return made


def test_the_copied_core_passes_all(package: Path, golden: list[Vector]) -> None:
    chip = stepper(package)
    assert [place for place, vector in enumerate(golden) if chip.differences(vector)] == []
    assert len(golden) > 5000


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name) for mutant in MUTANTS])
def test_a_planted_bug_is_caught(mutant: Mutant, package: Path, golden: list[Vector]) -> None:
    path = package / "cpu" / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"the mutant no longer fits {mutant.file}: change its text with the core"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    chip = stepper(package)
    assert any(chip.differences(vector) for vector in golden), "no golden vector sees this bug"


def test_mutants_differ_in_name_and_text() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len({mutant[1:] for mutant in MUTANTS}) == len(MUTANTS)
