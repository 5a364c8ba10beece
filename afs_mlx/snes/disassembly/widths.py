"""How wide A, X and Y are after an instruction, as far as that can be told without running it.

Knows no addresses and no flow. A width that is not known still has a value: the last one known, to read on with.
"""

from typing import NamedTuple

from afs_mlx.snes.cpu.opcodes import Opcode

# More is forgotten from below: a PLP that would need it finds nothing, and the widths are unknown.
MAX_STACK_BYTES = 32

# Bytes an instruction pushes or pulls; "m" and "x" stand for the width of A or of the index registers.
_PUSHES: dict[str, int | str] = {
    "pha": "m",
    **dict.fromkeys(("phx", "phy"), "x"),
    **dict.fromkeys(("phb", "phk"), 1),
    **dict.fromkeys(("phd", "pea", "pei", "per"), 2),
}
_PULLS: dict[str, int | str] = {"pla": "m", "plx": "x", "ply": "x", "plb": 1, "pld": 2}
_TRACKED = {"php", "plp", "rep", "sep", "xce", "clc", "sec", "tcs", "txs"} | _PUSHES.keys() | _PULLS.keys()


class Widths(NamedTuple):
    """Flags m, x and e; `emulation` is None where it is not known."""

    m8: bool
    x8: bool
    m_known: bool = True
    x_known: bool = True
    emulation: bool | None = False

    def settled(self) -> "Widths":
        """What emulation mode makes of the flags: m and x are 1 in it, so 16 bits are in doubt where it may be on."""
        if self.emulation:
            return Widths(True, True, True, True, True)
        if self.emulation is None:
            return self._replace(m_known=self.m_known and self.m8, x_known=self.x_known and self.x8)
        return self


# The bytes above the stack pointer, the top last: the widths in a P that was pushed, None for any other byte.
# Below the first one anything may lie.
Stack = tuple[Widths | None, ...]


class State(NamedTuple):
    """What is known before an instruction. `carry` is known directly behind CLC, SEC and XCE alone."""

    widths: Widths
    carry: bool | None = None
    stack: Stack = ()


def after(opcode: Opcode, operand: int, state: State) -> State:
    """The state behind an instruction that goes on to the next one.

    A P that is changed on the stack (`sta 1,s` to return a carry) is taken to keep m and x.
    """
    name = opcode.name
    widths, carry, stack = state
    if name not in _TRACKED:
        return State(widths, None, stack) if carry is not None else state
    if name in ("rep", "sep"):
        return State(_with_flags(widths, operand, name == "sep"), None, stack)
    if name == "xce":
        return State(widths._replace(emulation=carry).settled(), widths.emulation, stack)
    if name == "plp":
        pushed = stack[-1] if stack else None
        return State(_pulled(widths, pushed), None, stack[:-1])
    return State(widths, {"clc": False, "sec": True}.get(name), _moved(name, widths, stack))


def common_top(one: Stack, other: Stack) -> Stack:
    """What two stacks have in common, from the top down."""
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]


def _with_flags(widths: Widths, flags: int, value: bool) -> Widths:
    m8, x8, m_known, x_known, emulation = widths
    if flags & 0x20:
        m8, m_known = value, True
    if flags & 0x10:
        x8, x_known = value, True
    return Widths(m8, x8, m_known, x_known, emulation).settled()


def _pulled(widths: Widths, pushed: Widths | None) -> Widths:
    if pushed is None:
        return widths._replace(m_known=False, x_known=False).settled()
    return pushed._replace(emulation=widths.emulation).settled()


def _moved(name: str, widths: Widths, stack: Stack) -> Stack:
    """The stack behind a push, a pull or a new stack pointer."""
    if name == "php":
        return (*stack, widths)[-MAX_STACK_BYTES:]
    if name in ("tcs", "txs"):
        return ()
    what = _PUSHES.get(name) or _PULLS.get(name)
    if what is None:
        return stack
    size = _size_bytes(what, widths)
    if size is None:
        return ()
    if name in _PUSHES:
        return (*stack, *(None,) * size)[-MAX_STACK_BYTES:]
    return stack[:-size]


def _size_bytes(what: int | str, widths: Widths) -> int | None:
    if isinstance(what, int):
        return what
    known, narrow = (widths.m_known, widths.m8) if what == "m" else (widths.x_known, widths.x8)
    return (1 if narrow else 2) if known else None
