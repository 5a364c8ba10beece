"""A laptop under a long job: what is started to keep it awake, what sleep costs, what is warned about and how often."""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from afs_mlx.core import power
from afs_mlx.core.power import AwakeClock, Battery, MachineWatch, Reading, keep_awake, read_battery
from afs_mlx.core.power.battery import parse_pmset, sysfs_battery
from afs_mlx.core.power.clock import counting_sleep
from afs_mlx.core.power.watch import read_machine

# --- kept awake


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A pipe: reading it waits for what the fake program writes."""
    pipe = tmp_path / "told"
    os.mkfifo(pipe)
    return pipe


def test_caffeinate_runs_for_this_process_and_ends_with_the_block(tmp_path: Path, told: Path) -> None:
    fake = program(tmp_path / "caffeinate", f'echo "$$ $@" > {told}\nexec tail -f /dev/null')
    with keep_awake(fake, "darwin") as kept:
        pid, *arguments = told.read_text().split()
        assert arguments == ["-i", "-w", str(os.getpid())]
        assert kept.works
        assert "kept awake" in kept.text
        assert "closed lid" in kept.text
        assert os.getsid(int(pid)) != os.getsid(0)  # Ctrl-C in the terminal does not reach it
        assert alive(int(pid))
    assert not alive(int(pid))
    assert not kept.works


def test_it_ends_with_an_error_too_and_lets_it_through(tmp_path: Path, told: Path) -> None:
    fake = program(tmp_path / "caffeinate", f'echo "$$" > {told}\nexec tail -f /dev/null')
    pids: list[int] = []

    def job() -> None:
        with keep_awake(fake, "darwin"):
            pids.append(int(told.read_text()))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        job()
    assert not alive(pids[0])


def test_a_program_that_does_not_want_to_end_is_killed(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afs_mlx.core.power.awake._END_S", 0.2)
    fake = program(tmp_path / "caffeinate", f"trap '' TERM\necho $$ > {told}\nexec tail -f /dev/null")
    with keep_awake(fake, "darwin"):
        pid = int(told.read_text())
    assert not alive(pid)


def test_a_program_that_gives_up_is_said(tmp_path: Path) -> None:
    fake = program(tmp_path / "caffeinate", "exit 64")
    with keep_awake(fake, "darwin") as kept:
        assert kept._process is not None
        kept._process.wait()
        assert not kept.works
        assert kept.text == "the machine may fall asleep: caffeinate ended with 64"


def test_a_missing_program_is_said_not_raised(tmp_path: Path) -> None:
    with keep_awake(tmp_path / "absent", "darwin") as kept:
        assert not kept.works
        assert "may fall asleep" in kept.text
        assert "No such file" in kept.text


def test_elsewhere_nothing_is_started_and_that_is_said(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    fake = program(tmp_path / "caffeinate", f"touch {mark}")
    with keep_awake(fake, "linux") as kept:
        assert not kept.works
        assert "not kept awake" in kept.text
    assert not mark.exists()


# --- time without sleep


@dataclass
class Clocks:
    """Two clocks of a machine: `awake` stands while it sleeps."""

    awake_s: float = 1000.0
    total_s: float = 7000.0
    pauses: list[float] = field(default_factory=list)  # of the process, before and after the next readings of `total`

    def work(self, seconds: float) -> None:
        self.awake_s += seconds
        self.total_s += seconds

    def sleep(self, seconds: float) -> None:
        self.total_s += seconds

    def read_total(self) -> float:
        pause = self.pauses.pop(0) if self.pauses else 0.0
        self.work(pause)
        now = self.total_s
        self.work(pause)
        return now

    def clock(self) -> AwakeClock:
        return AwakeClock(lambda: self.awake_s, self.read_total)


def test_awake_and_asleep_are_told_apart() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    assert (clock.elapsed_s(), clock.slept_s()) == (0, 0)
    clocks.work(10)
    clocks.sleep(3600)
    clocks.work(5)
    assert (clock.elapsed_s(), clock.slept_s()) == (15, 3600)
    clocks.sleep(60)
    assert (clock.elapsed_s(), clock.slept_s()) == (15, 3660)


def test_a_process_that_is_stopped_between_two_readings_did_not_sleep() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clocks.sleep(100)
    assert clock.slept_s() == 100
    clocks.pauses = [40.0]
    assert clock.slept_s() == 100  # neither 140 nor 60
    assert clock.elapsed_s() == 80


def test_a_stop_while_it_is_made_hides_sleep_and_never_makes_it_up() -> None:
    clocks = Clocks()
    readings = iter([clocks.awake_s])
    clock = AwakeClock(lambda: next(readings, clocks.awake_s), lambda: clocks.total_s + 30)
    clocks.work(30)
    assert clock.slept_s() == 0


def test_the_systems_own_clocks_agree_while_awake() -> None:
    started, before = time.monotonic(), counting_sleep()
    clock = AwakeClock()
    elapsed, slept = clock.elapsed_s(), clock.slept_s()
    assert 0 <= elapsed <= time.monotonic() - started
    assert elapsed + slept <= counting_sleep() - before


def test_the_clock_that_counts_sleep_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def gettime(clock: int) -> float:
        asked.append(clock)
        return 5.0

    monkeypatch.setattr("time.clock_gettime", gettime)
    monkeypatch.setattr("time.CLOCK_MONOTONIC_RAW", 4)
    monkeypatch.setattr("time.CLOCK_BOOTTIME", 7, raising=False)
    for system in ("darwin", "linux"):
        monkeypatch.setattr("sys.platform", system)
        assert counting_sleep() == 5.0
    assert asked == [4, 7]


# --- battery

ON_MAINS = (
    "Now drawing from 'AC Power'\n -InternalBattery-0 (id=22806627)\t83%; charging; 1:00 remaining present: true\n"
)
DRAINING = (
    "Now drawing from 'Battery Power'\n"
    " -InternalBattery-0 (id=22806627)\t78%; discharging; 5:05 remaining present: true\n"
)
NO_ESTIMATE = (
    "Now drawing from 'Battery Power'\n"
    " -InternalBattery-0 (id=5308515)\t43%; discharging; (no estimate) present: true\n"
)
DESKTOP = "Now drawing from 'AC Power'\n"
UPS = (
    "Now drawing from 'UPS Power'\n"
    " -Back-UPS ES 700G FW:871 (id=6160384)\t64%; discharging; 0:21 remaining present: true\n"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ON_MAINS, Battery(False, 83)),
        (DRAINING, Battery(True, 78)),
        (NO_ESTIMATE, Battery(True, 43)),
        (DESKTOP, None),
        (UPS, Battery(True, 64)),
        (ON_MAINS + " -Back-UPS (id=1)\t100%; charged; present: true\n", Battery(False, 83)),
        ("Now drawing from 'Battery Power'\n", Battery(True, None)),
        ("Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\tunknown\n", Battery(True, None)),
        ("", None),
        ("pmset: error\n", None),
        (" -InternalBattery-0 (id=1)\t78%; discharging;\n", None),  # the source is not told
    ],
)
def test_pmset_in_each_format(text: str, expected: Battery | None) -> None:
    assert parse_pmset(text) == expected


def supply(folder: Path, name: str, **files: str) -> None:
    (folder / name).mkdir(parents=True)
    for file, text in files.items():
        (folder / name / file).write_text(text + "\n", encoding="utf-8")


def test_sysfs_takes_the_machines_own_batteries(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", present="1", status="Discharging", capacity="80")
    supply(tmp_path, "BAT1", type="Battery", present="1", status="Unknown", capacity="40")
    supply(tmp_path, "BAT2", type="Battery", present="0", status="Unknown", capacity="0")
    supply(tmp_path, "hid-mouse", type="Battery", scope="Device", status="Discharging", capacity="3")
    assert sysfs_battery(tmp_path) == Battery(True, 60)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_sysfs_on_mains(tmp_path: Path, status: str) -> None:
    supply(tmp_path, "BAT0", type="Battery", status=status, capacity="97")
    assert sysfs_battery(tmp_path) == Battery(False, 97)


def test_sysfs_without_a_battery_or_with_a_silent_one(tmp_path: Path) -> None:
    assert sysfs_battery(tmp_path / "absent") is None
    supply(tmp_path, "AC", type="Mains", online="1")
    assert sysfs_battery(tmp_path) is None
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="n/a")
    assert sysfs_battery(tmp_path) == Battery(True, None)


def test_a_mac_is_asked_by_pmset_and_may_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    asked: list[list[str]] = []

    def run(command: list[str]) -> str:
        asked.append(command)
        return DRAINING

    assert read_battery(run) == Battery(True, 78)  # type: ignore[arg-type]
    assert asked == [["/usr/bin/pmset", "-g", "batt"]]
    assert read_battery(lambda _: None) is None


# --- the watch

FINE = Reading(Battery(False, 90), 0, 0, 100_000_000_000)
UNPLUGGED = replace(FINE, battery=Battery(True, 90))


@dataclass
class Machine:
    """What the watch is told, and when; a reading is done at once."""

    clocks: Clocks = field(default_factory=Clocks)
    now: Reading = FINE
    readings: int = 0

    def read(self, folder: Path) -> Reading:
        self.readings += 1
        return self.now

    def watch(self) -> MachineWatch:
        return MachineWatch(Path("/run"), self.clocks.clock(), read=self.read, start=lambda work: work())

    def warnings(self, watch: MachineWatch, reading: Reading, after_s: float = 31) -> list[str]:
        """What is said by the step after the one that starts the reading."""
        self.now = reading
        self.clocks.work(after_s)
        return [*watch.new_warnings(), *watch.new_warnings()]


def test_nothing_is_said_about_a_machine_that_is_fine() -> None:
    machine = Machine()
    watch = machine.watch()
    for _ in range(20):
        assert machine.warnings(watch, FINE) == []


def test_readings_are_rare_however_often_it_is_asked() -> None:
    machine = Machine()
    watch = machine.watch()
    for _ in range(100):
        watch.new_warnings()
        machine.clocks.work(0.5)
    assert machine.readings == 2  # at the start and after 30 s


def test_battery_is_said_once_and_again_only_after_a_while_on_mains() -> None:
    machine = Machine()
    watch = machine.watch()
    assert machine.warnings(watch, UNPLUGGED) == [
        "running on battery (90 %): plug the machine in, training drains it fast and may run slower"
    ]
    assert machine.warnings(watch, UNPLUGGED) == []
    for _ in range(5):  # a loose plug
        assert machine.warnings(watch, FINE) == []
        assert machine.warnings(watch, UNPLUGGED) == []
    for _ in range(12):
        assert machine.warnings(watch, FINE) == []
    assert len(machine.warnings(watch, UNPLUGGED)) == 1


def test_a_job_that_starts_on_battery_is_told_so_at_once() -> None:
    machine = Machine(now=replace(FINE, battery=Battery(True, None)))
    assert machine.watch().new_warnings() == [
        "running on battery: plug the machine in, training drains it fast and may run slower"
    ]


def test_a_low_battery_is_said_at_two_levels_without_flicker() -> None:
    machine = Machine(now=UNPLUGGED)
    watch = machine.watch()
    watch.new_warnings()
    said = []
    for percent in (30, 21, 20, 19, 21, 20, 15, 11, 10, 11, 9, 5):
        said.append(machine.warnings(watch, replace(FINE, battery=Battery(True, percent))))
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert "low (20 %)" in said[2][0]
    assert "low (10 %)" in said[8][0]


def test_a_nearly_empty_battery_on_mains_is_no_matter() -> None:
    machine = Machine(now=replace(FINE, battery=Battery(False, 4)))
    assert machine.watch().new_warnings() == []


def test_swap_is_what_grew_since_the_start_and_said_at_each_doubling() -> None:
    machine = Machine(now=replace(FINE, swap_used_bytes=3_000_000_000))
    watch = machine.watch()
    assert watch.new_warnings() == []
    grown = [0, 400, 600, 900, 600, 1100, 1900, 2100, 9000, 9000]  # MB
    said = [machine.warnings(watch, replace(FINE, swap_used_bytes=3_000_000_000 + mb * 10**6)) for mb in grown]
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 1, 0, 1, 1, 0]
    assert "0.6 GB went to swap" in said[2][0]


def test_pages_that_go_out_and_come_back_count_as_well() -> None:
    machine = Machine(now=replace(FINE, swap_used_bytes=10**9, swapped_out_bytes=5 * 10**9))
    watch = machine.watch()
    assert machine.warnings(watch, replace(FINE, swap_used_bytes=10**9, swapped_out_bytes=7 * 10**9)) != []


def test_little_disk_is_said_once_with_the_folder() -> None:
    machine = Machine()
    watch = machine.watch()
    said = [machine.warnings(watch, replace(FINE, free_disk_bytes=mb * 10**6)) for mb in (3000, 1900, 2100, 1900, 500)]
    assert [len(lines) for lines in said] == [0, 1, 0, 0, 0]
    assert said[1] == ["1.9 GB are free on the disk of /run: free some, or no checkpoint can be saved"]


def test_what_the_system_does_not_say_is_not_warned_about() -> None:
    machine = Machine(now=Reading(None, None, None, None))
    watch = machine.watch()
    assert machine.warnings(watch, Reading(None, None, None, None)) == []
    assert machine.warnings(watch, replace(FINE, swap_used_bytes=10**12)) == []  # nothing to compare with


def test_a_night_with_short_wakes_is_one_line() -> None:
    machine = Machine()
    watch = machine.watch()
    said = []
    for _ in range(8):
        machine.clocks.sleep(15 * 60)
        for _ in range(4):
            said += watch.new_warnings()
            machine.clocks.work(10)
    assert said == []
    machine.clocks.work(31)
    assert watch.new_warnings() == ["the machine slept for 120 minutes; speed and time left do without it"]
    machine.clocks.work(100)
    assert watch.new_warnings() == []


def test_a_nap_is_not_worth_a_line_until_naps_add_up() -> None:
    machine = Machine()
    watch = machine.watch()
    said = []
    for _ in range(3):
        machine.clocks.sleep(25)
        watch.new_warnings()
        machine.clocks.work(70)
        said.append(watch.new_warnings())
    assert said == [[], [], ["the machine slept for 1 minute; speed and time left do without it"]]


@pytest.fixture
def hanging() -> Iterator[tuple[Callable[[Path], Reading], threading.Event]]:
    release = threading.Event()

    def read(folder: Path) -> Reading:
        release.wait()
        return UNPLUGGED

    yield read, release
    release.set()


def test_a_program_that_hangs_holds_up_no_step(hanging: tuple[Callable[[Path], Reading], threading.Event]) -> None:
    read, release = hanging
    clocks = Clocks()
    threads: list[threading.Thread] = []

    def start(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    watch = MachineWatch(Path("/run"), clocks.clock(), read=read, start=start)
    for _ in range(10):
        clocks.work(31)
        assert watch.new_warnings() == []
    assert len(threads) == 1  # none is started beside one that hangs
    release.set()
    threads[0].join()
    assert len(watch.new_warnings()) == 1
    assert len(threads) == 2


def test_a_reading_that_fails_is_tried_again() -> None:
    machine, readings = Machine(), iter([FINE])

    def read(folder: Path) -> Reading:
        return next(readings)  # the second raises StopIteration

    def start(work: Callable[[], None]) -> None:
        with contextlib.suppress(StopIteration):
            work()

    watch = MachineWatch(Path("/run"), machine.clocks.clock(), read=read, start=start)
    assert machine.warnings(watch, FINE) == []
    readings = iter([UNPLUGGED])
    assert len(machine.warnings(watch, FINE)) == 1


def test_a_thread_that_cannot_start_is_tried_again() -> None:
    machine = Machine()
    watch = machine.watch()

    def broken(work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    watch._start = broken
    assert machine.warnings(watch, UNPLUGGED) == []
    watch._start = lambda work: work()
    assert len(machine.warnings(watch, UNPLUGGED)) == 1


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    found = read_machine(tmp_path / "not" / "yet")
    assert found.free_disk_bytes is not None
    assert found.free_disk_bytes > 0


def test_the_default_reads_beside_the_job(tmp_path: Path) -> None:
    done = threading.Event()

    def read(folder: Path) -> Reading:
        done.set()
        return FINE

    MachineWatch(tmp_path, AwakeClock(), read=read)
    assert done.wait(60)
    assert power.MachineWatch is MachineWatch
