"""The SNES registers as the CPU sees them: address to name and name to address. Data in `registers.csv`.

Knows no expansion chip, no mirror ($2144 repeats $2140) and no unused byte ($430B). Names are those of the SNESdev
wiki; aliases come from anomie's, nocash's and Nintendo's documents and from assemblers' include files.
"""

import csv
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, cast

type Access = Literal["R", "W", "RW"]

_DMA = 0x4300
_LONGEST_NAME_CHARS = 32


@dataclass(frozen=True)
class Register:
    """One register.

    `address` has 16 bits; `accesses_per_value` is 2 for a port that takes or gives the low byte, then the high byte;
    `bits` shows bit 7 first, or counts them. A name may belong to several registers as an alias: VMADD is both VMADDL
    and VMADDH.
    """

    address: int
    name: str
    access: Access
    accesses_per_value: int
    bits: str
    purpose: str
    aliases: tuple[str, ...]


def by_address(address: int) -> Register | None:
    """The register at a 16-bit or 24-bit CPU address; None outside banks $00-$3F and $80-$BF."""
    # Bit 22 is set in banks $40-$7F and $C0-$FF, which show no I/O.
    if not 0 <= address <= 0xFFFFFF or address & 0x400000:
        return None
    return _by_address().get(address & 0xFFFF)


def by_name(name: str) -> tuple[Register, ...]:
    """The registers of a name, by address; empty when there is none. Upper and lower case are the same.

    Several when the name is that of a pair (VMADD), of a row (BGnSC, DMAPx: `n` or `x` for the digit), or used
    differently by different sources (WMADDH is $2182 or $2183).
    """
    return _by_name().get(name.upper(), ())


def name_of(address: int) -> str | None:
    """The name to print for an address, by the rules of `by_address`."""
    found = by_address(address)
    return found.name if found else None


def nearest(name: str) -> tuple[str, ...]:
    """Up to three names and aliases that a misspelt name may have meant, the likeliest first."""
    if len(name) > _LONGEST_NAME_CHARS:
        return ()
    known = dict.fromkeys(known for register in registers() for known in (register.name, *register.aliases))
    return tuple(difflib.get_close_matches(name.upper(), known))


@cache
def registers() -> tuple[Register, ...]:
    """All registers, by address."""
    text = resources.files(__package__).joinpath("registers.csv").read_text(encoding="utf-8")
    return tuple(
        Register(
            address=int(row["address"].removeprefix("$"), 16),
            name=row["name"],
            access=cast(Access, row["access"]),
            accesses_per_value=int(row["accesses_per_value"]),
            bits=row["bits"],
            purpose=row["purpose"],
            aliases=tuple(row["aliases"].split()),
        )
        for row in csv.DictReader(text.splitlines())
    )


@cache
def _by_address() -> dict[int, Register]:
    return {register.address: register for register in registers()}


@cache
def _by_name() -> dict[str, tuple[Register, ...]]:
    found: dict[str, list[Register]] = {}
    for register in registers():
        names = (register.name, *register.aliases)
        generics = [generic for name in names for generic in _generics(register, name)]
        for name in {*names, *generics}:
            found.setdefault(name.upper(), []).append(register)
    return {name: tuple(owners) for name, owners in found.items()}


def _generics(register: Register, name: str) -> Iterator[str]:
    """The names for all of a row: DMAPx, DMAPn and DMAP for DMAP0, BGnSC for BG1SC."""
    if register.address >= _DMA:
        # The channel is the last digit: A1T0L is channel 0 of A1TxL.
        before, _, after = name.rpartition(str(register.address >> 4 & 7))
        yield from (f"{before}{sign}{after}" for sign in "xn")
        if not after:
            yield before
    elif sum(sign.isdigit() for sign in name) == 1 and not name.startswith("M7"):
        digit = next(sign for sign in name if sign.isdigit())
        yield from (name.replace(digit, sign) for sign in "xn")
