"""The core in emulation mode beside py65, a 6502 that nobody here wrote: every documented opcode, many random states.

Left out is what the two chips do differently on purpose: decimal arithmetic, BRK's decimal flag, `jmp ($xxFF)`, and
indexing past the end of the bank.
"""

import random

import pytest
from py65.devices.mpu6502 import MPU

from afs_mlx.snes.cpu.core import Cpu
from afs_mlx.snes.cpu.memory import BLOCK_BYTES, MemoryMap, flat
from afs_mlx.snes.cpu.opcodes import OPCODES
from afs_mlx.snes.cpu.state import DECIMAL, M8, X8, State

DOCUMENTED = [code for code in range(256) if MPU.instruct[code].__name__ != "inst_not_implemented"]
STATES = 40
BANK_BYTES = 0x10000
ALL_BUT_MODES = 0xFF & ~(M8 | X8)  # the 6502 has the break flag and nothing there


@pytest.fixture(scope="module")
def memory() -> bytes:
    """No byte is $FF, so that no pointer with an index leaves the bank."""
    return bytes(random.Random(6502).choices(range(0xFF), k=BANK_BYTES))


def test_all_documented_opcodes_are_here() -> None:
    assert len(DOCUMENTED) == 151


@pytest.mark.parametrize("code", DOCUMENTED, ids=lambda code: f"{code:02x}-{OPCODES[code].name}")
def test_one_instruction(code: int, memory: bytes) -> None:
    rng = random.Random(code)
    board = flat()
    for number in range(BANK_BYTES // BLOCK_BYTES):
        block = board.writable[number]
        assert block is not None
        block[:] = memory[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
    cpu, peer = Cpu(board), MPU()
    peer.memory = bytearray(memory)
    for _ in range(STATES):
        pc = rng.randrange(0x0300, 0xF000)
        instruction = (code, rng.randrange(0xFF), rng.randrange(0xFE))
        put(board, peer, pc, instruction)
        a, x, y, s = (rng.randrange(256) for _ in range(4))
        p = rng.randrange(256) & ~DECIMAL | M8 | X8
        cpu.load(State(pc=pc, s=0x0100 | s, p=p, a=a, x=x, y=y, e=1))
        peer.pc, peer.a, peer.x, peer.y, peer.sp, peer.p = pc, a, x, y, s, p
        cpu.step()
        peer.step()
        dropped = DECIMAL if OPCODES[code].name == "brk" else 0
        assert (cpu.pc, cpu.a & 0xFF, cpu.x, cpu.y, cpu.s & 0xFF) == (peer.pc, peer.a, peer.x, peer.y, peer.sp)
        assert cpu.p & ALL_BUT_MODES & ~dropped == peer.p & ALL_BUT_MODES & ~dropped
        assert bank_0(board) == bytes(peer.memory)


def put(board: MemoryMap, peer: MPU, pc: int, instruction: tuple[int, ...]) -> None:
    for place, value in enumerate(instruction, start=pc):
        block = board.writable[place // BLOCK_BYTES]
        assert block is not None
        block[place % BLOCK_BYTES] = value
        peer.memory[place] = value


def bank_0(board: MemoryMap) -> bytes:
    return b"".join(block or b"" for block in board.writable[: BANK_BYTES // BLOCK_BYTES])
