"""The 65816 core beside other interpreters on the same code, and the time of an equivalence verdict.

py65 knows the 6502 only, so it runs the part of the routine that both know, in emulation mode. Another 65816 in Python
can stand beside: AFS_BENCH_65816 names a file with `snes_lorom(rom)` and `CPU(memory)` that has `run(instructions)`.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afs_mlx.core.jsonl import read_jsonl
from afs_mlx.core.paths import Workspace
from afs_mlx.schema.optimisation import OptimisationPair
from afs_mlx.snes.asar import asar_path, assemble
from afs_mlx.snes.cpu.core import Cpu
from afs_mlx.snes.cpu.memory import lorom
from afs_mlx.snes.cpu.state import State
from afs_mlx.snes.equivalence.checker import Checker, Contract
from afs_mlx.snes.execution.routine import Routine

INSTRUCTIONS = 300_000
PAIRS = 5
# Copies 32 bytes, adds to a counter, waits in a loop, calls a routine, and begins again.
CODE = "a2 1f bd 00 02 9d 20 02 ca 10 f7 a9 05 18 65 10 85 12 e6 14 a0 10 88 d0 fd 20 40 80 4c 00 80".replace(" ", "")
SUBROUTINE = "48 a5 10 c9 07 f0 02 e6 20 68 60".replace(" ", "")


def _rom() -> bytes:
    rom = bytearray(0x8000)
    for at, code in ((0, CODE), (0x40, SUBROUTINE)):
        rom[at : at + len(code) // 2] = bytes.fromhex(code)
    return bytes(rom)


def ours() -> float:
    """Instructions a second."""
    cpu = Cpu(lorom(_rom()))
    cpu.load(State(pc=0x8000, e=1))
    began = time.perf_counter()
    cpu.run(INSTRUCTIONS)
    return INSTRUCTIONS / (time.perf_counter() - began)


def py65() -> float:
    """Instructions a second of py65's NMOS 6502."""
    from py65.devices.mpu6502 import MPU

    cpu = MPU()
    for at, value in enumerate(_rom()):
        cpu.memory[0x8000 + at] = value
    cpu.pc = 0x8000
    began = time.perf_counter()
    for _ in range(INSTRUCTIONS):
        cpu.step()
    return INSTRUCTIONS / (time.perf_counter() - began)


def other(path: Path) -> Callable[[], float]:
    """Instructions a second of another 65816 interpreter."""
    spec = importlib.util.spec_from_file_location("other_65816", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"AFS_BENCH_65816: {path} is no Python file")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def rate() -> float:
        cpu = module.CPU(module.snes_lorom(_rom()))
        cpu.pc = 0x8000
        began = time.perf_counter()
        cpu.run(INSTRUCTIONS)
        return INSTRUCTIONS / (time.perf_counter() - began)

    return rate


def beside(name: str, peer: Callable[[], float]) -> None:
    pairs = [(ours(), peer()) for _ in range(PAIRS)]
    mine, its = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"65816: {mine / 1e6:.2f} M instructions/s, {name} {its / 1e6:.2f} M, ratio {ratio:.2f}, median of {PAIRS}")


def verdicts(pairs: int = 60) -> None:
    """Milliseconds from two texts to a verdict, and of that without Asar."""
    if asar_path() is None:
        print("verdicts: not measured, Asar is not installed")
        return
    rows = read_jsonl(Workspace.find().find_file("data/curated/din-v2.jsonl"), OptimisationPair.model_validate)
    whole, executed = [], []
    for pair in rows[:: max(1, len(rows) // pairs)]:
        began = time.perf_counter()
        routines = [Routine.of(assemble(text)) for text in (pair.code, pair.better)]
        assembled = time.perf_counter()
        report = Checker(routines[0], Contract((pair.entry,), pair.live)).check(routines[1])
        ended = time.perf_counter()
        if report.verdict != "equal":
            raise SystemExit(f"{pair.id} is no longer equal: {report.why}")
        whole.append(1000 * (ended - began))
        executed.append(1000 * (ended - assembled))
    for name, times in (("text to verdict", whole), ("execution alone", executed)):
        times.sort()
        print(
            f"verdict, 512 states, {len(times)} pairs: {name} {statistics.median(times):.0f} ms, "
            f"least {times[0]:.0f}, 90 % below {times[int(0.9 * len(times))]:.0f}, most {times[-1]:.0f}"
        )


def main() -> None:
    beside("py65 (6502)", py65)
    if path := os.environ.get("AFS_BENCH_65816"):
        beside(Path(path).name, other(Path(path)))
    verdicts()


if __name__ == "__main__":
    main()
