"""Single-step vectors: one instruction each, from a state and the bytes it reads to the state, cycles and bus after it.

A file `OP.MODE.json` (opcode in hexadecimal; `n` native, `e` emulation) is a JSON list of cases:

    [init, ram, final, writes, cycles, kinds, addrs]
    init, final  [pc, s, p, a, x, y, dbr, d, pbr, e]
    ram          [[address, byte], ...]   every byte the instruction reads
    writes       [[address, byte], ...]   every byte written, or only those whose value changed
    kinds        a character for each cycle: `r` read, `w` write, `-` internal
    addrs        the addresses of the `r` and `w` cycles, in order

Memory is flat: 16 MiB of RAM.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.snes.cpu.control import Stopped
from afs_mlx.snes.cpu.core import RecordedCpu
from afs_mlx.snes.cpu.memory import BLOCK_BITS, BLOCK_BYTES, MemoryMap, flat
from afs_mlx.snes.cpu.state import State

_WDM = 0x42
_MOST_CYCLES = 64  # the longest instruction takes 9
_OFFSET = BLOCK_BYTES - 1


@dataclass(frozen=True)
class Vector:
    """One instruction from state to state."""

    init: State
    ram: tuple[tuple[int, int], ...]
    final: State
    writes: tuple[tuple[int, int], ...]
    cycles: int
    kinds: str
    addresses: tuple[int, ...]

    @classmethod
    def read(cls, case: Any) -> "Vector":
        """A case of the schema. Raises ValueError with what is wrong."""
        if not isinstance(case, list) or len(case) != 7:
            raise ValueError("a case is a list of seven: init, ram, final, writes, cycles, kinds, addrs")
        init, ram, final, writes, cycles, kinds, addresses = case
        if not isinstance(kinds, str) or set(kinds) - set("rw-"):
            raise ValueError("kinds is a text of r, w and -")
        if not isinstance(addresses, list):
            raise ValueError("addrs is a list")
        for address in addresses:
            _in_range(address, 0xFFFFFF, "an address")
        _in_range(cycles, _MOST_CYCLES, "cycles")
        if len(kinds) != cycles:
            raise ValueError(f"kinds has {len(kinds)} signs for {cycles} cycles")
        if len(addresses) != len(kinds.replace("-", "")):
            raise ValueError(f"addrs has {len(addresses)} entries for {len(kinds.replace('-', ''))} reads and writes")
        return cls(
            _state(init, "init"), _bytes(ram, "ram"), _state(final, "final"), _bytes(writes, "writes"), cycles, kinds,
            tuple(addresses),
        )  # fmt: skip


@dataclass(frozen=True)
class Mismatch:
    """A case that went otherwise: the file, its place in it (from 0), and each thing that differs."""

    file: str
    case: int
    differences: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file} case {self.case}: {'; '.join(self.differences)}"


@dataclass(frozen=True)
class Verification:
    """How many cases passed, and the first that did not."""

    passed: int
    total: int
    files: int
    mismatches: tuple[Mismatch, ...]


def vector_files(folder: Path) -> list[Path]:
    """All `*.json` below a folder, sorted, or the one file. Raises MissingError when there is none."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise MissingError("there is no such folder", str(folder), "check the path")
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise MissingError(
            "there are no vector files (*.json) here", str(folder), "name a folder of OP.MODE.json files"
        )
    return files


def read_vectors(path: Path) -> list[Vector]:
    """The cases of a file. Raises AfsError that names the case."""
    try:
        cases = json.loads(path.read_bytes())
    except OSError as error:
        raise AfsError(f"cannot read: {error.strerror}", str(path), "check the path and its rights") from error
    except (ValueError, RecursionError) as error:
        raise AfsError(f"not valid JSON: {error}", str(path), "mend the file or take it out of the folder") from error
    if not isinstance(cases, list):
        raise AfsError("a list of cases is expected", str(path), "mend the file or take it out of the folder")
    vectors: list[Vector] = []
    for place, case in enumerate(cases):
        try:
            vectors.append(Vector.read(case))
        except ValueError as error:
            raise AfsError(f"case {place}: {error}", str(path), "mend the file or take it out of the folder") from error
    return vectors


def verify(
    folder: Path, first: int = 10, on_file: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Run every case of every file below a folder; keep the `first` mismatches. `on_file(done, total)` counts files."""
    files = vector_files(folder)
    stepper = Stepper()
    passed = total = 0
    mismatches: list[Mismatch] = []
    for done, path in enumerate(files, start=1):
        for place, vector in enumerate(read_vectors(path)):
            differences = stepper.differences(vector)
            total += 1
            passed += not differences
            if differences and len(mismatches) < first:
                name = str(path.relative_to(folder)) if path != folder else path.name
                mismatches.append(Mismatch(name, place, tuple(differences)))
        on_file(done, len(files))
    if total == 0:
        raise MissingError("the files hold no cases", str(folder), "name a folder of OP.MODE.json files")
    return Verification(passed, total, len(files), tuple(mismatches))


class Stepper:
    """Executes single instructions in 16 MiB of RAM that is zero between them."""

    def __init__(self) -> None:
        self.memory: MemoryMap = flat()
        self.cpu = RecordedCpu(self.memory)

    def differences(self, vector: Vector) -> list[str]:
        """Everything in which the instruction went otherwise than the vector says."""
        cpu = self.cpu
        before = dict(vector.ram)
        self._put(before.items())
        cpu.load(vector.init)
        cpu.bus.clear()
        cpu.writes.clear()
        cpu.cycles = 0
        opcode = before.get(vector.init.address)
        with suppress(Stopped):  # WAI and STP: their cycles are done
            cpu.step()
        found = list(_state_differences(vector.final, cpu.state))
        if cpu.cycles != vector.cycles:
            found.append(f"cycles {vector.cycles} expected, {cpu.cycles} performed")
        found += _bus_differences(vector, cpu.bus, opcode)
        found += _write_differences(vector, before, cpu.writes)
        self._put((address, 0) for address, _ in (*vector.ram, *cpu.writes))
        return found

    def _put(self, values: Any) -> None:
        for address, value in values:
            block = self.memory.writable[address >> BLOCK_BITS]
            if block is not None:
                block[address & _OFFSET] = value


def _state_differences(expected: State, got: State) -> Iterator[str]:
    for name, one, other in zip(State._fields, expected, got, strict=True):
        if one != other:
            yield f"{name} ${one:04X} expected, ${other:04X} found"


def _bus_differences(vector: Vector, bus: Sequence[tuple[str, int]], opcode: int | None) -> Iterator[str]:
    expected = _bus(vector.kinds, vector.addresses)
    got = list(bus)
    if opcode == _WDM and vector.kinds == "r-":
        got[1:] = [("-", -1)]  # SingleStepTests call the fetch of WDM's second byte internal
    for cycle, (one, other) in enumerate(zip(expected, got, strict=False), start=1):
        if one != other:
            yield f"bus cycle {cycle}: {_shown(one)} expected, {_shown(other)} performed"
            return


def _bus(kinds: str, addresses: tuple[int, ...]) -> list[tuple[str, int]]:
    remaining = iter(addresses)
    return [(kind, -1 if kind == "-" else next(remaining, -1)) for kind in kinds]


def _shown(cycle: tuple[str, int]) -> str:
    kind, address = cycle
    return "internal" if kind == "-" else f"{'read' if kind == 'r' else 'write'} ${address:06X}"


def _write_differences(vector: Vector, before: dict[int, int], writes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Files differ in whether a byte that was written with its own value is listed."""
    expected, got = dict(vector.writes), dict(writes)
    for address in sorted(expected.keys() | got.keys()):
        one = expected.get(address, before.get(address, 0))
        other = got.get(address, before.get(address, 0))
        if one != other or (address in expected and address not in got):
            shown = f"${other:02X} found" if address in got else "not written"
            yield f"${address:06X}: ${one:02X} expected, {shown}"


def _state(values: Any, name: str) -> State:
    if not isinstance(values, list) or len(values) != len(State._fields):
        raise ValueError(f"{name} is a list of {len(State._fields)}: {', '.join(State._fields)}")
    state = State(*values)
    for field, value in zip(State._fields, state, strict=True):
        _in_range(value, {"p": 0xFF, "dbr": 0xFF, "pbr": 0xFF, "e": 1}.get(field, 0xFFFF), f"{name} {field}")
    return state


def _bytes(values: Any, name: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(values, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in values):
        raise ValueError(f"{name} is a list of [address, byte]")
    for address, value in values:
        _in_range(address, 0xFFFFFF, f"{name}: an address")
        _in_range(value, 0xFF, f"{name}: a byte")
    return tuple((address, value) for address, value in values)


def _in_range(value: Any, most: int, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} must be a number from 0 to {most}, not {value!r:.40}")
