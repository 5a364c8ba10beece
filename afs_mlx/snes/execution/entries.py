"""States to enter a routine in: what is declared stays, the rest is drawn, reproducibly and with a liking for edges.

Uniform bytes hardly ever make two values equal, a pointer sensible or a counter wrap, so states come in kinds: edges,
anything, few values that repeat, words that are pointers into WRAM, and the routine's own constants and their
neighbours, without which `cmp #$0258` would never be met.
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes.cpu.memory import BLOCK_BITS, BLOCK_BYTES
from afs_mlx.snes.cpu.state import CARRY, DECIMAL, M8, X8, State

_WRAM, _SRAM = 0x7E0000, 0x700000
_WRAM_BLOCKS = 16
RAM_BLOCKS = 20  # 16 of WRAM, 4 of save RAM; block 0 holds the direct page, the stack and most variables
STACK_BYTES = 96  # below S at entry: what a routine may leave behind there is dead
_S_NATIVE = (0x1E80, 0x1FE0)
_S_EMULATION = (0x0180, 0x01E0)
_EDGE_BYTES = bytes((0x00, 0x01, 0x02, 0x7F, 0x80, 0x81, 0xFE, 0xFF))
_EDGE_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0x8001, 0xFF00, 0xFFFF)
KINDS = ("edges", "anything", "repeating", "pointers", "constants")
_MOST_CONSTANTS = 64
_POOL = 8


@dataclass(frozen=True)
class Entry:
    """One state to start in. `ram` holds RAM_BLOCKS blocks of 8 KiB.

    `port_seed` picks the devices' behaviour and everything else outside the routine, `port_words` are values that they
    give more often than others.
    """

    state: State
    ram: tuple[bytes, ...] = field(repr=False)
    port_seed: int
    port_words: tuple[int, ...] = ()


def draw(
    declared: EntryState, index: int, seed: int, constants: tuple[int, ...] = (), only_constants: bool = False
) -> Entry:
    """The `index`-th state under what is declared; every fifth, or all, are made of the constants, where there are any.

    The program counter is left to the caller.
    """
    words = _neighbourhood(constants)
    kind = "constants" if only_constants and words else KINDS[index % (len(KINDS) if words else len(KINDS) - 1)]
    rng = random.Random(f"registers {seed}/{index}")
    memory = _memory(kind, index, seed) if kind != "constants" else _memory_of(words, index, seed)
    low, high = _S_EMULATION if declared.e else _S_NATIVE
    index_bits = 8 if declared.e else declared.x
    state = State(
        s=rng.randrange(low, high),
        p=_status(declared, rng),
        a=_accumulator(declared, _word(kind, memory.words, rng)),
        x=_index(declared.x_value, index_bits, kind, memory.words, rng),
        y=_index(declared.y, index_bits, kind, memory.words, rng),
        dbr=declared.dbr if declared.dbr is not None else _bank(rng),
        d=declared.d if declared.d is not None else _direct_page(rng),
        e=declared.e,
    )
    return Entry(state, memory.ram, rng.getrandbits(32), words)


class _Memory(NamedTuple):
    """RAM of a state, and the words that its registers like."""

    words: tuple[int, ...]
    ram: tuple[bytes, ...]


@lru_cache(maxsize=1024)
def _memory(kind: str, index: int, seed: int) -> _Memory:
    """The same whatever is declared, so drawn once."""
    rng = random.Random(f"memory {seed}/{index}")
    palette = rng.randbytes(rng.randrange(1, 5)) if kind == "repeating" else _EDGE_BYTES
    words = _EDGE_WORDS if kind == "edges" else tuple(low | high << 8 for low in palette for high in palette)
    return _Memory(words, (_block(kind, palette, rng), *_far_blocks(kind, rng)))


@lru_cache(maxsize=256)
def _memory_of(words: tuple[int, ...], index: int, seed: int) -> _Memory:
    """RAM full of the words, at even or at odd addresses, or of their bytes."""
    rng = random.Random(f"constants {seed}/{index}")
    which = rng.randbytes(BLOCK_BYTES)
    if rng.randrange(3) == 0:
        found = sorted({byte for word in words for byte in word.to_bytes(2, "little")})
        block = which.translate(bytes(found[value % len(found)] for value in range(256)))
    else:
        filled = bytearray(BLOCK_BYTES)
        for place in (0, 1):
            filled[place::2] = which[::2].translate(
                bytes(words[value % len(words)] >> 8 * place & 0xFF for value in range(256))
            )
        block = bytes(filled)
    shift = rng.randrange(2)
    return _Memory(words, (block[shift:] + block[:shift],) * RAM_BLOCKS)


def _far_blocks(kind: str, rng: random.Random) -> list[bytes]:
    return [rng.choice(_pool(kind)) for _ in range(RAM_BLOCKS - 1)]


@lru_cache(maxsize=64)
def _neighbourhood(constants: tuple[int, ...]) -> tuple[int, ...]:
    """The constants, one less and one more."""
    some = constants[:: -(-len(constants) // _MOST_CONSTANTS) or 1]
    near = {constant + step & 0xFFFF for constant in some for step in (-1, 0, 1)}
    return tuple(sorted(near))


def _bank(rng: random.Random) -> int:
    return rng.choice((0x00, 0x7E, 0x7E, 0x7F, 0x80, rng.randrange(0x40)))


def _status(declared: EntryState, rng: random.Random) -> int:
    status = rng.randrange(256) & ~(M8 | X8 | DECIMAL)
    status |= M8 * (declared.m == 8 or declared.e) | X8 * (declared.x == 8 or declared.e) | DECIMAL * declared.decimal
    return status if declared.c is None else status & ~CARRY | CARRY * declared.c


def _accumulator(declared: EntryState, drawn: int) -> int:
    if declared.a is None:
        return drawn
    return drawn & 0xFF00 | declared.a if declared.m == 8 and declared.a <= 0xFF else declared.a


def _index(declared: int | None, bits: int, kind: str, words: tuple[int, ...], rng: random.Random) -> int:
    """An index register: a wide one is mostly small, as indices are."""
    if declared is not None:
        return declared
    word = _word(kind, words, rng)
    if bits == 8:
        return word & 0xFF
    return word & rng.choice((0xFF, 0xFF, 0x3FF, 0xFFF, 0xFFFF))


def _direct_page(rng: random.Random) -> int:
    """Somewhere in the low WRAM, below the stack; not always on a page."""
    return rng.choice((0x0000, 0x0000, 0x0100 * rng.randrange(0x1C), rng.randrange(0x1B00)))


def _word(kind: str, words: tuple[int, ...], rng: random.Random) -> int:
    if kind == "anything":
        return rng.getrandbits(16)
    return rng.randrange(0x0200, 0x1C00) if kind == "pointers" else rng.choice(words)


def _block(kind: str, palette: bytes, rng: random.Random) -> bytes:
    """8 KiB of memory of a kind."""
    anything = rng.randbytes(BLOCK_BYTES)
    if kind == "anything":
        return anything
    if kind != "pointers":
        return anything.translate(bytes(palette[value % len(palette)] for value in range(256)))
    block = bytearray(anything)
    block[1::2] = anything[1::2].translate(bytes(0x02 + value % 0x1A for value in range(256)))
    # Every second byte is the bank of a long pointer as well as the low byte of a short one.
    block[0::2] = anything[0::2].translate(bytes(0x7E if value & 1 else value for value in range(256)))
    return bytes(block)


@lru_cache(maxsize=len(KINDS))
def _pool(kind: str) -> tuple[bytes, ...]:
    rng = random.Random(kind)
    return tuple(_block(kind, rng.randbytes(3) if kind == "repeating" else _EDGE_BYTES, rng) for _ in range(_POOL))


def address_of(block: int, offset: int) -> int:
    """The 24-bit address of a byte of RAM: WRAM in banks $7E and $7F, save RAM in bank $70."""
    if block < _WRAM_BLOCKS:
        return _WRAM + (block << BLOCK_BITS) + offset
    return _SRAM + (block - _WRAM_BLOCKS << BLOCK_BITS) + offset


def block_of(address: int) -> tuple[int, int] | None:
    """The block and the offset of a byte of RAM at a 24-bit address, also through a mirror; None for other memory."""
    bank, offset = address >> 16, address & 0xFFFF
    if bank in (0x7E, 0x7F):
        return (bank & 1) << 3 | offset >> BLOCK_BITS, offset & BLOCK_BYTES - 1
    if not bank & 0x40 and offset < BLOCK_BYTES:
        return 0, offset
    if bank & 0x7F >= 0x70 and offset < 0x8000:
        return _WRAM_BLOCKS + (offset >> BLOCK_BITS), offset & BLOCK_BYTES - 1
    return None


def span_of(first: int, last: int) -> tuple[int, int] | None:
    """A stretch of RAM by the addresses of `address_of`; None when it is none, or runs backwards."""
    places = [address_of(*place) for address in (first, last) if (place := block_of(address))]
    return (places[0], places[1]) if len(places) == 2 and places[0] <= places[1] else None
