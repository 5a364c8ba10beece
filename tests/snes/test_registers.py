"""The register table: complete, consistent, and found under every name people use."""

import re
from collections import Counter

import pytest

from afs_mlx.snes.registers.table import Register, by_address, by_name, name_of, nearest, registers

# Owned by several on purpose: the bytes of one value, and WMADDH, which sources use for $2182 and for $2183.
OF_SEVERAL = {
    *("OAMADD", "OAMADDR", "VMADD", "VMADDR", "VMDATA", "MPY", "RDVRAM", "VMDATAREAD", "WMADD", "WMADDR", "WMADDH"),
    *("WRDIV", "HTIME", "VTIME", "RDDIV", "RDMPY"),
    *(f"{name}{pad}" for name in ("JOY", "PAD", "STDCNTRL") for pad in range(1, 5)),
    *(f"{name}{channel}" for name in ("A1T", "DAS", "A2A") for channel in range(8)),
}


def test_every_register_is_there_once() -> None:
    addresses = [register.address for register in registers()]
    assert addresses == sorted(addresses, key=lambda address: (address & 0xFF00 != 0x2100, address))
    assert set(addresses) == {
        *range(0x2100, 0x2144),
        *range(0x2180, 0x2184),
        *(0x4016, 0x4017),
        *range(0x4200, 0x420E),
        *range(0x4210, 0x4220),
        *(0x4300 + 16 * channel + at for channel in range(8) for at in range(11)),
    }
    assert len(addresses) == 192


@pytest.mark.parametrize("register", registers(), ids=lambda register: register.name)
def test_rows_are_filled_in(register: Register) -> None:
    assert register.purpose.strip() == register.purpose != ""
    assert register.access in ("R", "W", "RW")
    assert register.accesses_per_value in (1, 2)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9]+", name) for name in (register.name, *register.aliases))
    one_byte = re.fullmatch(r"[-A-Za-z0-9]{8}", register.bits) or register.name in ("SLHV", "JOYSER0")
    assert bool(one_byte) == (register.accesses_per_value == 1)


def test_names_are_unique_but_for_the_stated_ones() -> None:
    names = Counter(name for register in registers() for name in {register.name, *register.aliases})
    assert {name for name, owners in names.items() if owners > 1} == OF_SEVERAL
    assert len({register.name for register in registers()}) == len(registers())


def test_the_write_twice_ports_and_the_read_twice_ports() -> None:
    twice = {register.address for register in registers() if register.accesses_per_value == 2}
    assert twice == {*range(0x210D, 0x2115), *range(0x211B, 0x2121), 0x2122, 0x213B, 0x213C, 0x213D}


def test_access() -> None:
    reads = {register.address for register in registers() if register.access == "R"}
    both = {register.address for register in registers() if register.access == "RW" and register.address < 0x4300}
    assert reads == {*range(0x2134, 0x2140), 0x4017, *range(0x4210, 0x4220)}
    assert both == {*range(0x2140, 0x2144), 0x2180, 0x4016}
    assert {register.access for register in registers() if register.address >= 0x4300} == {"RW"}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0x2100, "INIDISP"),
        (0x2115, "VMAIN"),
        (0x2116, "VMADDL"),
        (0x2117, "VMADDH"),
        (0x2121, "CGADD"),
        (0x2133, "SETINI"),
        (0x213F, "STAT78"),
        (0x2182, "WMADDM"),
        (0x2183, "WMADDH"),
        (0x4016, "JOYSER0"),
        (0x4200, "NMITIMEN"),
        (0x420B, "MDMAEN"),
        (0x420C, "HDMAEN"),
        (0x4212, "HVBJOY"),
        (0x4218, "JOY1L"),
        (0x4300, "DMAP0"),
        (0x4374, "A1B7"),
        (0x437A, "NTRL7"),
    ],
)
def test_name_of(address: int, name: str) -> None:
    assert name_of(address) == name
    assert name_of(0x3F0000 | address) == name_of(0x800000 | address) == name_of(0xBF0000 | address) == name


@pytest.mark.parametrize("bank", [0x40, 0x7E, 0x7F, 0xC0, 0xFF])
def test_other_banks_show_no_registers(bank: int) -> None:
    assert by_address(bank << 16 | 0x2100) is None
    assert name_of(bank << 16 | 0x4200) is None


@pytest.mark.parametrize("address", [-1, 0, 0x20FF, 0x2144, 0x2184, 0x4015, 0x420E, 0x4220, 0x430B, 0x4380, 0x1002100])
def test_no_register(address: int) -> None:
    assert by_address(address) is None
    assert name_of(address) is None


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("inidisp", [0x2100]),
        ("OBJSEL", [0x2101]),
        ("VMAINC", [0x2115]),
        ("CGSWSEL", [0x2130]),
        ("RDOAM", [0x2138]),
        ("RDVRAML", [0x2139]),
        ("RDVRAMH", [0x213A]),
        ("RDCGRAM", [0x213B]),
        ("M7HOFS", [0x210D]),
        ("APUI02", [0x2142]),
        ("WMADDB", [0x2183]),
        ("WMADDH", [0x2182, 0x2183]),
        ("JOYA", [0x4016]),
        ("PAD1L", [0x4218]),
        ("STDCNTRL1H", [0x4219]),
        ("NLTR3", [0x433A]),
        ("VMADD", [0x2116, 0x2117]),
        ("BGnSC", [0x2107, 0x2108, 0x2109, 0x210A]),
        ("WHx", [0x2126, 0x2127, 0x2128, 0x2129]),
        ("A1T2", [0x4322, 0x4323]),
        ("A2A2L", [0x4328]),
        ("", []),
        ("VRAM", []),
        ("x", []),
        ("DASH", []),
    ],
)
def test_by_name(name: str, addresses: list[int]) -> None:
    assert [register.address for register in by_name(name)] == addresses


@pytest.mark.parametrize("name", ["DMAPx", "DMAPn", "dmapX", "DMAP"])
def test_a_dma_name_without_channel_is_all_eight(name: str) -> None:
    assert [register.name for register in by_name(name)] == [f"DMAP{channel}" for channel in range(8)]


def test_every_name_and_alias_leads_back() -> None:
    for register in registers():
        assert by_address(register.address) == register
        for name in (register.name, *register.aliases):
            assert register in by_name(name.lower())


@pytest.mark.parametrize(("name", "meant"), [("VMIAN", "VMAIN"), ("inidsp", "INIDISP"), ("NMITIME", "NMITIMEN")])
def test_nearest(name: str, meant: str) -> None:
    assert nearest(name)[0] == meant


@pytest.mark.parametrize("name", ["", "SCRBRT", "\0", "Ж" * 20, "VMAIN" * 100_000])
def test_nothing_is_near(name: str) -> None:
    assert nearest(name) == ()
