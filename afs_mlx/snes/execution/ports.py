"""The devices behind the ports, as far as a routine can know them: opaque machines that are told apart by what was done
to them. Knows no routine.

A read gives an arbitrary value that depends on what was written to the same device before, and, where a port changes by
itself, on how often it was read. So two routines that treat the devices alike see the same values, and one that leaves
out a write or swaps it with a read does not. DMA registers hold what was written. The multiplier and divider are right
once their time has passed and arbitrary before. What the devices do to memory or to the screen is not modelled.
"""

# Reading these changes the device: how often and in which order they are read is part of what a routine does.
READ_CHANGES = frozenset(
    (0x2137, 0x2138, 0x2139, 0x213A, 0x213B, 0x213C, 0x213D, 0x213F, 0x2180, 0x4016, 0x4017, 0x4210, 0x4211)
)
# These change by themselves: two reads may differ.
_MOVING = READ_CHANGES | {0x213E, 0x4212} | set(range(0x2140, 0x2180))
_RESULTS = (0x4214, 0x4215, 0x4216, 0x4217)
_MULTIPLY_CYCLES, _DIVIDE_CYCLES = 8, 16  # between the write that starts and the read that sees the result

type PortEvent = tuple[str, int, int]
"""`w` or `r`, the address within its bank, the value; in the order in which they happened."""


def is_port(address: int) -> bool:
    """Whether devices answer at a 24-bit address: $2000-$5FFF in banks $00-$3F and $80-$BF."""
    return not address & 0x400000 and 0x2000 <= address & 0xFFFF < 0x6000


class Ports:
    """All devices in one run; `seed` stands for everything that cannot be known about them.

    Now and then they answer with one of `likely`, words whose low byte stands at even addresses.
    """

    def __init__(self, seed: int, likely: tuple[int, ...] = ()) -> None:
        self._likely = likely
        self.log: list[PortEvent] = []
        self._seed = seed
        self._history: dict[str, int] = {}
        self._held: dict[int, int] = {}
        self._ready_at = 0
        self._polled: set[int] = set()

    def read(self, address: int, cycles: int) -> int:
        """Read a port by its address within the bank; `cycles` is the time so far."""
        device = _device(address)
        if device == "dma" and address in self._held:
            return self._held[address]
        if device == "math" and cycles < self._ready_at:
            return _mixed(self._seed, address, self._ready_at - cycles) & 0xFF
        if device == "math" and address in self._held:
            return self._held[address]
        history = self._history.get(device, 0)
        value = _mixed(self._seed, address, history) >> 8 & 0xFF
        both = _mixed(self._seed, address | 1, history) if self._likely else 1
        if both & 3 == 0:
            value = self._likely[(both >> 8) % len(self._likely)] >> 8 * (address & 1) & 0xFF
        if address in _MOVING:
            self._history[device] = _mixed(self._history.get(device, 0), address, -1)
        if address in READ_CHANGES:
            self.log.append(("r", address, value))
            self._polled.clear()
        elif address in _MOVING and address not in self._polled:
            # Waiting for a device: that it was asked counts, how often does not.
            self.log.append(("r", address, value))
            self._polled.add(address)
        return value

    def write(self, address: int, value: int, cycles: int) -> None:
        """Write a port by its address within the bank; `cycles` is the time so far."""
        self.log.append(("w", address, value))
        self._polled.clear()
        device = _device(address)
        self._history[device] = _mixed(self._history.get(device, 0), address, value)
        if device in ("dma", "math"):
            self._held[address] = value
        if address == 0x4203:
            self._multiply(cycles)
        elif address == 0x4206:
            self._divide(cycles)

    def _multiply(self, cycles: int) -> None:
        one, other = self._held.get(0x4202), self._held[0x4203]
        # The quotient's register is where the second factor is shifted to.
        self._give(cycles + _MULTIPLY_CYCLES, None if one is None else (other, one * other))

    def _divide(self, cycles: int) -> None:
        low, high, divisor = self._held.get(0x4204), self._held.get(0x4205), self._held[0x4206]
        if low is None or high is None:
            self._give(cycles + _DIVIDE_CYCLES, None)
        else:
            dividend = low | high << 8
            self._give(cycles + _DIVIDE_CYCLES, divmod(dividend, divisor) if divisor else (0xFFFF, dividend))

    def _give(self, last_wait: int, result: tuple[int, int] | None) -> None:
        """Quotient, and product or rest, after the cycle `last_wait`; None where an operand is not known."""
        self._ready_at = last_wait + 1
        for place, address in enumerate(_RESULTS):
            if result is None:
                self._held.pop(address, None)
            else:
                self._held[address] = result[place >> 1] >> 8 * (place & 1) & 0xFF


def _device(address: int) -> str:
    if address < 0x2140:
        return "ppu"
    if address < 0x2180:
        return "apu"
    if address < 0x2200:
        return "wram port"
    if 0x4202 <= address <= 0x4206 or 0x4214 <= address <= 0x4217:
        return "math"
    if 0x4300 <= address < 0x4380:
        return "dma"
    if 0x4210 <= address <= 0x4212:
        return "timers"
    return "pads" if address in (0x4016, 0x4017) or 0x4218 <= address < 0x4220 else "cpu"


def _mixed(*numbers: int) -> int:
    """An arbitrary but repeatable 32-bit number; the steps are those of Knuth's and Fibonacci's hashing."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ number & 0xFFFFFFFF) * 0xD1342543DE82EF95 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
    return state >> 16 & 0xFFFFFFFF
