"""The devices behind the ports: what a read depends on, what is logged, and the multiplier's time."""

import random
from collections.abc import Callable

import pytest

from afs_mlx.snes.execution.ports import READ_CHANGES, PortEvent, Ports, is_port

SEEDS = range(40)
# Of each device a port to write and one to read, which is no register that holds what was written.
DEVICES = {
    "ppu": (0x2105, 0x2134),
    "apu": (0x2141, 0x2140),
    "wram port": (0x2181, 0x2180),
    "math": (0x4202, 0x4216),
    "dma": (0x4301, 0x4312),
    "timers": (0x4210, 0x4212),
    "pads": (0x4016, 0x4218),
    "cpu": (0x4200, 0x4213),
}
READS_WITH_EFFECT = (0x2137, 0x2138, 0x2139, 0x213A, 0x213B, 0x213C, 0x213D, 0x213F, 0x2180, 0x4016, 0x4017)
MOVING = (*READS_WITH_EFFECT, 0x4210, 0x4211, 0x213E, 0x4212, 0x2140, 0x2143, 0x217F)
STILL = (0x2100, 0x2134, 0x2136, 0x21FF, 0x4213, 0x4216, 0x4218, 0x421F, 0x4300, 0x437F, 0x4380, 0x2000, 0x5FFF)

type Script = Callable[[Ports], object]


def changed(before: Script, port: int) -> float:
    """In which part of all devices `before` changes what is read from a port."""
    count = 0
    for seed in SEEDS:
        plain, used = Ports(seed), Ports(seed)
        before(used)
        count += plain.read(port, 0) != used.read(port, 0)
    return count / len(SEEDS)


def same(one: Script, other: Script, port: int) -> bool:
    """Whether a port reads the same after either, for all devices."""
    for seed in SEEDS:
        first, second = Ports(seed), Ports(seed)
        one(first)
        other(second)
        if first.read(port, 0) != second.read(port, 0):
            return False
    return True


def writing(*writes: tuple[int, int]) -> Script:
    def script(ports: Ports) -> None:
        for address, value in writes:
            ports.write(address, value, 0)

    return script


@pytest.mark.parametrize(
    ("address", "answers"),
    [
        (0x001FFF, False), (0x002000, True), (0x005FFF, True), (0x006000, False), (0x3F2100, True), (0x402100, False),
        (0x7E2100, False), (0x802100, True), (0xBF5FFF, True), (0xC02100, False), (0xFF4200, False), (0x00A000, False),
    ],
)  # fmt: skip
def test_where_devices_answer(address: int, answers: bool) -> None:
    assert is_port(address) == answers


@pytest.mark.parametrize("written", DEVICES)
@pytest.mark.parametrize("read", DEVICES)
def test_a_read_depends_on_the_writes_to_its_own_device_only(written: str, read: str) -> None:
    part = changed(writing((DEVICES[written][0], 0x5A)), DEVICES[read][1])
    assert part > 0.9 if written == read else part == 0


def test_value_address_order_and_number_of_writes_all_count() -> None:
    base = writing((0x2105, 1), (0x2106, 2))
    others = [((0x2105, 1), (0x2106, 3)), ((0x2105, 1), (0x2107, 2)), ((0x2106, 2), (0x2105, 1)), ((0x2106, 2),)]
    for other in [*others, ((0x2105, 1), (0x2106, 2), (0x2106, 2))]:
        assert not same(base, writing(*other), 0x2134), other
    assert same(base, writing((0x2105, 1), (0x2106, 2)), 0x2134)


def test_the_seed_picks_the_devices_and_the_port_the_value() -> None:
    assert len({Ports(seed).read(0x4218, 0) for seed in range(400)}) > 150
    values = [Ports(7).read(address, 0) for address in range(0x2000, 0x6000)]
    assert set(values) == set(range(256))
    assert values == [Ports(7).read(address, 0) for address in range(0x2000, 0x6000)]


@pytest.mark.parametrize("port", MOVING)
def test_moving_ports_change_with_each_read(port: int) -> None:
    assert changed(lambda ports: ports.read(port, 0), port) > 0.9
    ports = Ports(3)
    assert len({ports.read(port, 0) for _ in range(50)}) > 20


@pytest.mark.parametrize("port", STILL)
def test_other_ports_stay_however_often_they_are_read(port: int) -> None:
    for seed in SEEDS:
        ports = Ports(seed)
        assert len({ports.read(port, 0) for _ in range(5)}) == 1


def test_a_moving_read_moves_its_device_and_a_still_one_nothing() -> None:
    assert changed(lambda ports: ports.read(0x2139, 0), 0x213A) > 0.9
    assert changed(lambda ports: ports.read(0x4212, 0), 0x4210) > 0.9
    assert changed(lambda ports: ports.read(0x4210, 0), 0x2139) == 0
    assert changed(lambda ports: ports.read(0x2134, 0), 0x2139) == 0
    assert not same(
        lambda ports: (ports.read(0x2139, 0), ports.read(0x213A, 0)),
        lambda ports: (ports.read(0x213A, 0), ports.read(0x2139, 0)),
        0x2138,
    )


def test_reads_with_an_effect_and_waits_are_logged() -> None:
    assert frozenset((*READS_WITH_EFFECT, 0x4210, 0x4211)) == READ_CHANGES
    ports = Ports(1)
    values = {address: ports.read(address, 0) for address in range(0x2000, 0x6000)}
    waits = {0x213E, 0x4212, *range(0x2140, 0x2180)}
    assert ports.log == [("r", address, values[address]) for address in sorted(READ_CHANGES | waits)]


def test_how_often_a_port_is_asked_in_a_wait_does_not_count() -> None:
    logs = []
    for rounds in (1, 2, 50):
        ports = Ports(1)
        for _ in range(rounds):
            ports.read(0x4212, 0)
        ports.write(0x2104, 1, 0)
        ports.read(0x4212, 0)
        logs.append([(kind, address) for kind, address, _ in ports.log])
    assert logs == [[("r", 0x4212), ("w", 0x2104), ("r", 0x4212)]] * 3


def test_likely_values_are_read_now_and_then() -> None:
    values = [Ports(seed, b"\x12\x34").read(0x4218, 0) for seed in range(400)]
    assert 50 < values.count(0x12) + values.count(0x34) < 200
    assert min(values.count(0x12), values.count(0x34)) > 20
    assert len(set(values)) > 100
    plain = [Ports(seed).read(0x4218, 0) for seed in range(400)]
    assert plain.count(0x12) + plain.count(0x34) < 20


def test_the_log_keeps_the_order_across_devices() -> None:
    ports = Ports(1)
    expected: list[PortEvent] = []
    for address, value in ((0x2100, 0x8F), (0x4200, 0), (0x2100, 0x8F), (0x4300, 1), (0x5000, 7)):
        ports.write(address, value, 0)
        expected.append(("w", address, value))
        expected.append(("r", 0x4210, ports.read(0x4210, 0)))
        expected.append(("r", 0x4212, ports.read(0x4212, 0)))
    assert ports.log == expected


def test_dma_registers_hold_what_was_written() -> None:
    ports = Ports(5)
    written = {address: address * 7 & 0xFF for address in range(0x4300, 0x4380)}
    for address, value in written.items():
        ports.write(address, value, 0)
    ports.write(0x420B, 0xFF, 0)
    assert {address: ports.read(address, 0) for address in written} == written
    ports.write(0x4312, 0xEE, 0)
    assert [ports.read(0x4312, 0), ports.read(0x4313, 0)] == [0xEE, written[0x4313]]


def test_other_registers_do_not_hold_what_was_written() -> None:
    for address in (0x2100, 0x2141, 0x2181, 0x4016, 0x4200, 0x4380):
        assert any(Ports(seed).read(address, 0) != 0x5A for seed in SEEDS)
        reads = []
        for seed in SEEDS:
            ports = Ports(seed)
            ports.write(address, 0x5A, 0)
            reads.append(ports.read(address, 0))
        assert set(reads) != {0x5A}, f"${address:04X}"


# ---- the multiplier and divider ------------------------------------------------------------------------------------


def product(ports: Ports, a: int, b: int, waited: int) -> int:
    ports.write(0x4202, a, 100)
    ports.write(0x4203, b, 104)
    return ports.read(0x4216, 104 + waited) | ports.read(0x4217, 104 + waited) << 8


def quotient(ports: Ports, dividend: int, divisor: int, waited: int) -> tuple[int, int]:
    ports.write(0x4204, dividend & 0xFF, 100)
    ports.write(0x4205, dividend >> 8, 101)
    ports.write(0x4206, divisor, 105)
    low, high, rest, rest_high = (ports.read(address, 105 + waited) for address in range(0x4214, 0x4218))
    return low | high << 8, rest | rest_high << 8


def test_products_and_quotients_are_right_once_their_time_has_passed() -> None:
    rng = random.Random(1)
    for _ in range(300):
        a, b, word = rng.randrange(256), rng.randrange(256), rng.randrange(65536)
        assert product(Ports(1), a, b, 9) == a * b
        assert quotient(Ports(1), word, b or 1, 17) == divmod(word, b or 1)
    assert product(Ports(1), 0xFF, 0xFF, 1000) == 0xFE01
    assert quotient(Ports(1), 0xFFFF, 1, 1000) == (0xFFFF, 0)
    assert quotient(Ports(1), 0x1234, 0, 17) == (0xFFFF, 0x1234)


@pytest.mark.parametrize("waited", range(1, 8))
def test_a_product_read_too_early_is_arbitrary(waited: int) -> None:
    found = [product(Ports(seed), 0x12, 0x34, waited) for seed in SEEDS]
    assert len(set(found)) > 30
    assert found.count(0x12 * 0x34) <= 1
    assert found != [product(Ports(seed), 0x12, 0x34, waited + 1) for seed in SEEDS], "it changes with time"


@pytest.mark.parametrize("waited", [1, 8, 12, 15])
def test_a_quotient_read_too_early_is_arbitrary(waited: int) -> None:
    found = [quotient(Ports(seed), 0x1234, 0x56, waited) for seed in SEEDS]
    assert len(set(found)) > 30
    assert found.count(divmod(0x1234, 0x56)) <= 1


def test_the_whole_time_lies_between_the_write_and_the_read() -> None:
    assert {product(Ports(seed), 0x12, 0x34, 8) for seed in SEEDS} != {0x12 * 0x34}
    assert {quotient(Ports(seed), 0x1234, 0x56, 16) for seed in SEEDS} != {divmod(0x1234, 0x56)}


def test_the_quotient_after_a_multiplication_is_the_second_factor() -> None:
    ports = Ports(1)
    assert product(ports, 0x12, 0x34, 20) == 0x12 * 0x34
    assert ports.read(0x4214, 200) | ports.read(0x4215, 200) << 8 == 0x34


def test_a_product_of_unknown_factors_is_unknown() -> None:
    for writes in ([(0x4203, 0x34)], [(0x4202, 0x34)], [(0x4206, 3)], [(0x4204, 3), (0x4206, 3)]):
        found = set()
        for seed in SEEDS:
            ports = Ports(seed)
            for address, value in writes:
                ports.write(address, value, 0)
            found.add(ports.read(0x4216, 1000))
        assert len(found) > 20, writes


def test_a_second_multiplication_takes_its_time_again() -> None:
    ports = Ports(1)
    product(ports, 2, 3, 20)
    ports.write(0x4203, 5, 200)
    early = [ports.read(0x4216, 200 + waited) for waited in range(1, 8)]
    assert early != [10] * 7
    assert ports.read(0x4216, 209) == 10
    assert [event[1] for event in ports.log] == [0x4202, 0x4203, 0x4203]


def test_the_same_calls_give_the_same_values() -> None:
    rng = random.Random(2)
    script = [(rng.random() < 0.5, rng.randrange(0x2000, 0x4400), rng.randrange(256), at) for at in range(3000)]

    def play(seed: int) -> tuple[list[int], list[PortEvent]]:
        ports, reads = Ports(seed), []
        for writes, address, value, cycle in script:
            if writes:
                ports.write(address, value, cycle)
            else:
                reads.append(ports.read(address, cycle))
        return reads, ports.log

    assert play(9) == play(9)
    assert play(9)[0] != play(10)[0]
    assert all(0 <= value <= 0xFF for value in play(9)[0])
