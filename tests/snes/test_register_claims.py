"""What a text claims about registers: which pairs are claims, which are not, and who is right."""

import pytest

from afs_mlx.snes.registers import claims as module
from afs_mlx.snes.registers.claims import MAX_TEXT_CHARS, claims

RIGHT = "right"
WRONG = "wrong"
UNKNOWN = "unknown"


def found(text: str) -> list[tuple[int, str, str]]:
    return [(claim.address, claim.name, claim.verdict) for claim in claims(text)]


@pytest.mark.parametrize(
    "form",
    [
        "{address} ({name})",
        "{name} ({address})",
        "{name} at {address}",
        "register {address} is {name}",
        "{address} = {name}",
        "{address}: {name}",
        "**{address}** – {name}",
        "`{address}` / `{name}`",
        "`{address}` — **{name}** (what it does)",
        "### {name} – {address}",
        "- **{name} (`{address}`)**: what it does",
        "1. {address} {name} what it does",
        "| {address} | {name} | what it does |",
        "| `{name}` | `{address}` | what it does |",
        "| {address} | W | {name} |",
        "| {name} | What it does | {address} | W |",
        "| 2 | STA {address} | {name} |",
        "{name} | {address} | W",
        "<td>{address}</td><td>{name}</td>",
        "    sta {address} ; {name}",
        "STA.w {address} ; set {name}",
        "  lda {address}   ; {name}: what it does",
        "stz {address} // {name}",
        "sta {name} ; {address}",
        "{name} = {address}",
        "!{name} = {address}",
        ".define REG_{name} {address}",
        "#define REG_{name} {address}",
        ".equ {name}, {address}",
        "{name} equ {address}",
        '"{name}": "{address}",',
        '{{"address": "{address}", "name": "{name}"}}',
        "{address},{name},W",
        "({address}, {name})",
        "The {name} register ({address}) does it.",
        "The register at address {address} is called {name}.",
        "The register at `{address}` is the **{name}** register.",
        "The {address} register, also known as `{name}`, does it.",
        "{name} is the PPU register at {address}.",
        "{name} is located at {address}, by the way.",
        "The address of {name} is {address}.",
        "{name}'s address is {address}",
        "{address} is the register that controls something (`{name}`).",
        "{address}, the something register ({name}), does it.",
        "{name} (Something Register) at {address}",
        "{name} (Something Register, {address})",
        "{name} (register {address}, write-only)",
        "It maps to [{name}] ({address}).",
        "\\{address} is {name}",
        "{address} → {name}",
        "What is it? {name} is {address}.",
    ],
)
def test_forms(form: str) -> None:
    assert found(form.format(address="$2115", name="VMAIN")) == [(0x2115, "VMAIN", RIGHT)]
    assert found(form.format(address="$2100", name="VMAIN")) == [(0x2100, "VMAIN", WRONG)]
    assert found(form.format(address="$420B", name="HDMAEN")) == [(0x420B, "HDMAEN", WRONG)]


@pytest.mark.parametrize(
    "address", ["$2115", "0x2115", "2115h", "02115h", "$002115", "$00:2115", "$80:2115", "$BF2115", "0x802115"]
)
def test_ways_to_write_an_address(address: str) -> None:
    assert found(f"{address} (VMAIN)") == [(0x2115, "VMAIN", RIGHT)]
    assert found(f"INIDISP is {address}") == [(0x2115, "INIDISP", WRONG)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The confusions that models are known for.
        ("$2100 is VMAIN", [(0x2100, "VMAIN", WRONG)]),
        ("$2115 is INIDISP", [(0x2115, "INIDISP", WRONG)]),
        ("$2121 (CGDATA), $2122 (CGADD)", [(0x2121, "CGDATA", WRONG), (0x2122, "CGADD", WRONG)]),
        ("`$420B` (HDMAEN) and `$420C` (MDMAEN)", [(0x420B, "HDMAEN", WRONG), (0x420C, "MDMAEN", WRONG)]),
        ("NMITIMEN ($4210)", [(0x4210, "NMITIMEN", WRONG)]),
        ("$2116 is VMADDH, $2117 is VMADDL", [(0x2116, "VMADDH", WRONG), (0x2117, "VMADDL", WRONG)]),
        # Pairs, rows and channels.
        ("$2118-$2119 (VMDATAL/VMDATAH)", [(0x2118, "VMDATAL", RIGHT), (0x2119, "VMDATAH", RIGHT)]),
        ("$2118/$2119 (VMDATAL/H)", [(0x2118, "VMDATAL", RIGHT), (0x2119, "VMDATAH", RIGHT)]),
        ("$2118/19 (VMDATAL/H)", [(0x2118, "VMDATAL", RIGHT), (0x2119, "VMDATAH", RIGHT)]),
        ("$2119/$2118 (VMDATAL/H)", [(0x2119, "VMDATAL", WRONG), (0x2118, "VMDATAH", WRONG)]),
        ("VMADDL and VMADDH ($2116 and $2117)", [(0x2116, "VMADDL", RIGHT), (0x2117, "VMADDH", RIGHT)]),
        ("stx $2116 ; VMADDL/H", [(0x2116, "VMADDL", RIGHT), (0x2117, "VMADDH", RIGHT)]),
        ("VMADD ($2116)", [(0x2116, "VMADD", RIGHT)]),
        ("VMADD ($2118)", [(0x2118, "VMADD", WRONG)]),
        ("VMADDL ($2116/$2117)", [(0x2116, "VMADDL", RIGHT)]),
        ("WH0-WH3 ($2126-$2129)", [(0x2126, "WH0", RIGHT), (0x2129, "WH3", RIGHT)]),
        ("$2140–$2143 (APUIO0–3)", [(0x2140, "APUIO0", RIGHT), (0x2143, "APUIO3", RIGHT)]),
        ("BGnHOFS ($210D, $210F)", [(0x210D, "BGnHOFS", RIGHT)]),
        ("$2100-$213F (INIDISP to STAT78)", [(0x2100, "INIDISP", RIGHT), (0x213F, "STAT78", RIGHT)]),
        ("$2100-$2133 (NMITIMEN)", [(0x2100, "NMITIMEN", WRONG)]),
        (
            "$4302-$4304 (A1T0L, A1T0H, A1B0)",
            [(0x4302, "A1T0L", RIGHT), (0x4303, "A1T0H", RIGHT), (0x4304, "A1B0", RIGHT)],
        ),
        (
            "$2116/$2117 and $2118/$2119 (VMADDL/H and VMDATAL/H)",
            [
                (0x2116, "VMADDL", RIGHT),
                (0x2117, "VMADDH", RIGHT),
                (0x2118, "VMDATAL", RIGHT),
                (0x2119, "VMDATAH", RIGHT),
            ],
        ),
        ("$43x0 (DMAPx)", [(0x4300, "DMAPx", RIGHT)]),
        ("$43X0 (DMAPn), $43n1 (BBADn)", [(0x4300, "DMAPn", RIGHT), (0x4301, "BBADn", RIGHT)]),
        ("$43x5/$43x6 (DASxL/H)", [(0x4305, "DASxL", RIGHT), (0x4306, "DASxH", RIGHT)]),
        ("$43x1 (DMAPx)", [(0x4301, "DMAPx", WRONG)]),
        ("$4300 (DMAP0)", [(0x4300, "DMAP0", RIGHT)]),
        ("$4310 (DMAP0)", [(0x4310, "DMAP0", WRONG)]),
        ("$4310 (DMAPx)", [(0x4310, "DMAPx", RIGHT)]),
        # Other names for the same.
        ("OBJSEL ($2101), VMAINC ($2115)", [(0x2101, "OBJSEL", RIGHT), (0x2115, "VMAINC", RIGHT)]),
        ("RDVRAML ($2139), RDCGRAM ($213B)", [(0x2139, "RDVRAML", RIGHT), (0x213B, "RDCGRAM", RIGHT)]),
        ("PAD1L ($4218), JOYA ($4016)", [(0x4218, "PAD1L", RIGHT), (0x4016, "JOYA", RIGHT)]),
        ("OBSEL/OBJSEL ($2101)", [(0x2101, "OBSEL", RIGHT), (0x2101, "OBJSEL", RIGHT)]),
        ("$2182 (WMADDH), $2183 (WMADDH)", [(0x2182, "WMADDH", RIGHT), (0x2183, "WMADDH", RIGHT)]),
        ("$2182 (WMADDM), $2183 (WMADDB)", [(0x2182, "WMADDM", RIGHT), (0x2183, "WMADDB", RIGHT)]),
        ("$2181 (WMADDH)", [(0x2181, "WMADDH", WRONG)]),
        ("inidisp ($2100)", [(0x2100, "inidisp", RIGHT)]),
        # Several claims in one line, each with its own partner.
        ("INIDISP ($2100) and VMAIN ($2115)", [(0x2100, "INIDISP", RIGHT), (0x2115, "VMAIN", RIGHT)]),
        (
            "write $80 to $2115 (VMAIN) and the address to $2116 (VMADDL)",
            [(0x2115, "VMAIN", RIGHT), (0x2116, "VMADDL", RIGHT)],
        ),
        ("$2100 is INIDISP and VMAIN is $2116", [(0x2100, "INIDISP", RIGHT), (0x2116, "VMAIN", WRONG)]),
        ("$2115 - INIDISP ($2100)", [(0x2100, "INIDISP", RIGHT)]),
        ("| BBAD0 | $4301 | $18 | VMDATAL ($2118) |", [(0x4301, "BBAD0", RIGHT), (0x2118, "VMDATAL", RIGHT)]),
        ("(it sets $2121 then $2122), BBAD=$18 (VMDATAL)", []),
        # Denied, asked, quoted.
        ("$2100 is INIDISP, not VMAIN", [(0x2100, "INIDISP", RIGHT)]),
        ("$2100 is not VMAIN", []),
        ("VMAIN is not $2100", []),
        ("VMAIN isn't at $2100.", []),
        ("$2100 (not VMAIN)", []),
        ("$2100 isn't VMAIN, it's INIDISP", [(0x2100, "INIDISP", RIGHT)]),
        ("$2100 is not INIDISP but VMAIN", [(0x2100, "VMAIN", WRONG)]),
        ("VMAIN is not $2100 but $2115", [(0x2115, "VMAIN", RIGHT)]),
        ("It is INIDISP, not VMAIN ($2100).", []),
        ("It is INIDISP, not VMAIN ($2115).", [(0x2115, "VMAIN", RIGHT)]),
        ("Is $2100 VMAIN? No.", []),
        ("The comment says $2100 (VMAIN), which is incorrect.", []),
        ("That was wrong. $2100 is VMAIN.", [(0x2100, "VMAIN", WRONG)]),
        ("Do not write $2100 (VMAIN) now.", [(0x2100, "VMAIN", WRONG)]),
        ("Don't confuse VMAIN ($2115) with INIDISP.", [(0x2115, "VMAIN", RIGHT)]),
        # Near each other, and nothing claimed.
        ("VMAIN is set before $2118 is written.", []),
        ("After writing $2119 VMAIN increments the address", []),
        ("set VMAIN, $2116, and $2118", []),
        ("Use $2100, VMAIN, and CGADD.", []),
        ("VMDATAL ($2115 bit 7 = 0)", []),
        ("| $2118 | VMAIN must be set | W |", []),
        ("sta $2115 ; increment after VMDATAH", []),
        ("sta $2115 ; VMDATAH writes increment", []),
        ("To write VRAM via VMDATAL: $2115 = $80", []),
        ("$2100-$213F (PPU registers)", []),
        ("the mosaic ($2105)", []),
        ("$2100 (INIDISP’s address)", []),
        ("VMAIN\n$2100", []),
        # Values, and what a DMA channel writes to.
        ("INIDISP = $80, VMAIN = $0F", []),
        ("lda #$2100 ; VMAIN", []),
        ("VMADDL = $4200", []),
        ("DAS0L: $2100", []),
        ("BBAD0 = $2118", []),
        ("sta $4301 ; VMDATAL", []),
        ("sta $4300 ; VMDATAL/VMDATAH in turn", []),
        # No registers there.
        ("$7E2100 (INIDISP), VMAIN at $7E:2115", []),
        ("$C02100 (VMAIN)", []),
        ("$212100 (VMAIN)", [(0x2100, "VMAIN", WRONG)]),
        ("$21001 (VMAIN), $2100A (VMAIN), A$2100 (VMAIN)", []),
        ("$2150 (APUIO1)", []),
        ("$4220 (NMITIMEN)", [(0x4220, "NMITIMEN", WRONG)]),
        ("INIDISP, VMAIN and CGADD are registers.", []),
        # Names that no table knows, and words that are no names.
        ("$2100 (SCRBRT)", [(0x2100, "SCRBRT", UNKNOWN)]),
        ("VMIAN = $2115", [(0x2115, "VMIAN", UNKNOWN)]),
        ("| $2100 | DISPCTL | brightness |", [(0x2100, "DISPCTL", UNKNOWN)]),
        ("$2100 is called DISPCTL.", [(0x2100, "DISPCTL", UNKNOWN)]),
        ("DISPCTL at $2100", []),
        ("$2100 (Screen Display)", []),
        ("FORCED BLNK ($2100)", []),
        ("$4200 (NMI), $2116 (VRAM), $2102 (OAM), $2140 (APU)", []),
        ("$420B (DMA) = HDMA, $2105 (BG1), $2100 (RW), $2100 (LDA), STZ ($2100)", []),
    ],
)
def test_claims(text: str, expected: list[tuple[int, str, str]]) -> None:
    assert found(text) == expected


def test_place_and_message() -> None:
    text = "Registers:\r\n\r\nFirst, `$2100` (VMAIN)."
    (claim,) = claims(text)
    assert (claim.line, text[claim.start :]) == (3, "$2100` (VMAIN).")
    assert claim.expected == "INIDISP"
    assert claim.message() == "line 3: $2100 is INIDISP, not VMAIN (VMAIN is $2115)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$2101 (OBJSEL)", "line 1: $2101 is OBJSEL"),
        ("$2100 (SCRBRT)", "line 1: no register is called SCRBRT; $2100 is INIDISP"),
        ("$4220 (NMITIMEN)", "line 1: $4220 is no register, not NMITIMEN (NMITIMEN is $4200)"),
        ("$2181 (WMADDH)", "line 1: $2181 is WMADDL, not WMADDH (WMADDH is $2182 or $2183)"),
        ("$43x1 (DMAPx)", "line 1: $4301 is BBADx, not DMAPx (DMAPx is $4300 and others)"),
        ("$43xC (DMAPx)", "line 1: $430C is no register, not DMAPx (DMAPx is $4300 and others)"),
    ],
)
def test_messages(text: str, message: str) -> None:
    assert [claim.message() for claim in claims(text)] == [message]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("\0$2100\0(VMAIN)\0", 0),
        ("$2100 (VMAIN)\0", 1),
        ("\0 $2100 (VMAIN)", 1),
        ("＄2100 (VMAIN), $２１００ (VMAIN), $2100 (ＶＭＡＩＮ)", 0),
        ("レジスタ $2100 (VMAIN) です", 1),
        ("🎮$2100 (VMAIN)🎮", 1),
        ("$2100\u00a0(VMAIN)", 1),
        ("$2100\u2028VMAIN", 1),
        ("\ud800$2100 (VMAIN)\udfff", 1),
    ],
)
def test_odd_characters(text: str, count: int) -> None:
    assert len(claims(text)) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("$2100 " * 170_000, 0),
        ("(" * 1_000_000, 0),
        ("$2100 " + "(" * 1_000_000 + "VMAIN", 0),
        ("VMAIN" + " " * 1_000_000 + "$2100", 0),
        ("VMAIN " + "the " * 250_000 + "$2100", 0),
        ("VMAIN " + "at " * 300_000 + "$2100", 0),
        ("$2100/" * 160_000, 0),
        ("$2100-" * 160_000 + "VMAIN", 0),
        ("VMAIN/" * 160_000 + "$2100", 16),
        ("|$2100" * 160_000 + "|VMAIN|", 1),
        ("<" * 500_000 + "$2100 VMAIN" + "<" * 500_000, 0),
        ("$2100 (VMAIN) " * 20_000, 20_000),
        ("$2100 (VMAIN)\n" * 20_000, 20_000),
    ],
    ids=range(13),
)
def test_a_megabyte_of_one_thing(text: str, count: int) -> None:
    assert len(claims(text)) == count


def test_the_end_of_an_endless_text_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_TEXT_CHARS >= 1_000_000
    monkeypatch.setattr(module, "MAX_TEXT_CHARS", 1000)
    assert len(claims("$2100 (VMAIN)\n" * 1000)) == 71
