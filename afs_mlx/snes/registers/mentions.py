"""Where a line names an address or a register, alone or several joined. Judges nothing."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from afs_mlx.snes.mnemonics import DIRECTIVES, RESERVED
from afs_mlx.snes.registers.table import by_name
from afs_mlx.snes.registers.wording import plain, words_of

# Every look around a place is this long at most, which keeps the whole linear in the text.
MAX_GLUE_CHARS = 120
NEAR_CHARS = 32
_MAX_GROUP = 16

_HEX = r"(21[0-9A-F]{2}|401[67]|42[0-9A-F]{2}|43[0-9A-FXN][0-9A-F])"
_TOKEN = re.compile(
    rf"(?<![A-Z0-9$#%&])(?:(?:(?:\$|0x)(?:([0-9A-F]{{2}})[:/]?)?{_HEX}|0?{_HEX}h)(?![A-Z0-9])|([A-Z][A-Z0-9_]+))", re.I
)
ANY_ADDRESS = re.compile(_HEX, re.I)
_LOW_DIGITS = re.compile(r"([-/–])([0-9A-Fa-f]{1,4})(?![A-Za-z0-9])")
_LAST_LETTERS = re.compile(r"([-/–])([A-Za-z0-9]{1,2})(?![A-Za-z0-9_])")
_PREFIX = re.compile(r"(?:REG|SNES|PPU|CPU|HW)_(?=.)")
_UNKNOWN_NAME = re.compile(r"[A-Z][A-Z0-9_]{2,15}")
# Names that are also words: only in capitals do they name the register.
_ALSO_WORDS = frozenset({"MOSAIC", "TM", "TS", "DAS", "MPY"})
_ORDINARY = words_of(
    "PPU PPU1 PPU2 CPU APU SPC SPC700 DSP DMA GPDMA MDMA HDMA VRAM WRAM SRAM ARAM CGRAM OAM RAM ROM SNES SFC NES NMI "
    "IRQ VBLANK HBLANK FBLANK BLANK BG1 BG2 BG3 BG4 OBJ OBJ1 OBJ2 RGB BGR PAL NTSC CRT LOROM HIROM FASTROM SLOWROM "
    "MMIO BCD ASCII LSB MSB LOW HIGH BYTE WORD LONG BIT BITS REG REGISTER REGISTERS ADDR ADDRESS VALUE DATA MODE MODE7 "
    "READ WRITE ONLY OFF ALL ANY NOT XOR THE FOR USE SET YES TODO NOTE WARNING IMPORTANT TIP HEX BIN ASM WLA CA65 BASS "
    "PORT UNUSED RESERVED NULL NONE MUST NEVER ALWAYS JOYPAD SCREEN DISPLAY COLOR COLOUR PALETTE SPRITE SPRITES TILE "
    "TILES WINDOW TIMER INPUT OUTPUT"
) | {word.upper() for word in RESERVED | DIRECTIVES}


_JOINT = re.compile(r" ?(/|,|&|\+|-|\.\.\.?|…|,? ?and|or|to|through) ?")


@dataclass(frozen=True, slots=True)
class Mention:
    """An address (no name; eight addresses for `$43x0`) or a name (no address when no table knows it)."""

    name: str
    addresses: tuple[int, ...]


@dataclass(slots=True)
class Group:
    """Mentions of one kind joined by signs or words: `$2118/$2119`, `VMADDL and VMADDH`."""

    is_name: bool
    start: int
    end: int
    members: list[Mention]
    joints: set[str]

    @property
    def is_known(self) -> bool:
        return all(member.addresses for member in self.members)

    @property
    def is_range(self) -> bool:
        return len(self.members) == 2 and self.joints <= {"-", "..", "...", "…", "to", "through"}

    @property
    def is_list(self) -> bool:
        return len(self.members) > 1 and not self.is_range and self.joints != {"/"}


def groups_in(line: str) -> Iterator[Group]:
    """The mentions of a line, joined where a sign or word joins them; nothing when no address is named."""
    group: Group | None = None
    for found in _TOKEN.finditer(line):
        bank, with_sign, with_h, word = found.groups()
        members = _named(word) if word else _addressed(bank, with_sign or with_h)
        start, end = found.span()
        if not members or (group and start < group.end):
            continue
        joints: set[str] = set()
        tail = _LAST_LETTERS if word else _LOW_DIGITS
        while members[0].addresses and len(members) < _MAX_GROUP and (more := tail.match(line, end)):
            whole = (word or with_sign or with_h)[: -len(more[2])] + more[2]
            added = _named(whole) if word else _addressed(bank, whole)
            if not added or not added[0].addresses:
                break
            members.extend(added)
            joints.add(plain(more[1]))
            end = more.end()
        between = plain(line[group.end : start]) if group and start - group.end <= MAX_GLUE_CHARS else ""
        joint = _JOINT.fullmatch(between)
        if (
            group
            and joint
            and group.is_name == bool(word)
            and members[0].addresses
            and group.is_known
            and len(group.members) < _MAX_GROUP
        ):
            group.end = end
            group.members.extend(members)
            group.joints |= joints | {joint[1].strip(", ")}
            continue
        if group:
            yield group
        group = Group(bool(word), start, end, members, joints)
    if group:
        yield group


def _addressed(bank: str | None, digits: str) -> list[Mention]:
    if not re.fullmatch(_HEX, digits, re.I) or (bank and int(bank, 16) & 0x40):
        return []
    if digits[2] in "xXnN":
        return [Mention("", tuple(int(f"43{channel}{digits[3]}", 16) for channel in range(8)))]
    address = int(digits, 16)
    # These repeat the four APU ports: any name of theirs would be right.
    return [] if 0x2144 <= address <= 0x217F else [Mention("", (address,))]


@lru_cache(maxsize=4096)
def _mention(word: str) -> Mention | None:
    name = _PREFIX.sub("", word.rstrip("_"), count=1)
    if owners := by_name(name):
        if name.upper() in _ALSO_WORDS and not name.isupper():
            return None
        return Mention(name, tuple(owner.address for owner in owners))
    return Mention(name, ()) if _UNKNOWN_NAME.fullmatch(name) and name not in _ORDINARY else None


def _named(word: str) -> list[Mention]:
    found = _mention(word) if len(word) <= NEAR_CHARS else None
    return [found] if found else []
