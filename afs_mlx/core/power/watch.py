"""Warnings about the machine under a long job, each said once. Asked at every step, it costs a clock reading."""

import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.files import existing_parent
from afs_mlx.core.memory import Memory
from afs_mlx.core.power.battery import Battery, read_battery
from afs_mlx.core.power.clock import AwakeClock

EVERY_S = 30.0  # between two readings
CALM_S = 300.0  # something must have been over for so long before it is warned about again
LOW_PERCENT, EMPTY_PERCENT, RECOVERED_PERCENT = 20.0, 10.0, 5.0  # the last is on top of each level
SWAP_GROWTH_BYTES = 500_000_000  # and then at each doubling
LOW_DISK_BYTES = 2_000_000_000
SLEEP_S = 60.0  # a sleep that is worth a line, and the time awake after which it is taken as over


@dataclass(frozen=True)
class Reading:
    """What was found at one moment; None where the system does not say."""

    battery: Battery | None
    swap_used_bytes: int | None
    swapped_out_bytes: int | None
    free_disk_bytes: int | None


def read_machine(folder: Path) -> Reading:
    """Read everything now. Never raises; may take seconds where a program hangs."""
    memory = Memory.here()
    try:
        free = shutil.disk_usage(existing_parent(folder)).free
    except OSError:
        free = None
    return Reading(read_battery(), memory.swap_used_bytes, memory.swapped_out_bytes, free)


def in_thread(work: Callable[[], None]) -> None:
    """Run `work` beside the job: a program that hangs must not hold up a step, nor the end of the process."""
    threading.Thread(target=work, name="machine-watch", daemon=True).start()


class MachineWatch:
    """Watches battery, swap, sleep and the disk of `folder`. The first reading, at once, is what swap is compared with.

    `read` gives a Reading, `start` runs it; `clock` says when. No two readings run at the same time.
    """

    def __init__(
        self,
        folder: Path,
        clock: AwakeClock,
        *,
        read: Callable[[Path], Reading] = read_machine,
        start: Callable[[Callable[[], None]], None] = in_thread,
    ) -> None:
        self._folder, self._clock, self._read, self._start = folder, clock, read, start
        self._readings: queue.SimpleQueue[Reading | None] = queue.SimpleQueue()
        self._reading = False
        self._due_s = 0.0
        self._battery, self._low, self._empty, self._disk = (_Alarm() for _ in range(4))
        self._first: Reading | None = None
        self._next_swap_bytes = SWAP_GROWTH_BYTES
        self._slept_s, self._slept_seen_s, self._told_s = clock.slept_s(), 0.0, clock.slept_s()
        self._begin(0.0)

    def new_warnings(self) -> list[str]:
        """What has newly come up since the last call; seldom anything."""
        now = self._clock.elapsed_s()
        found = self._sleep(now)
        while not self._readings.empty():
            reading = self._readings.get()
            self._reading = False
            if reading is not None:
                found += [*self._power(reading.battery, now), *self._swap(reading), *self._space(reading, now)]
        if now >= self._due_s and not self._reading:
            self._begin(now)
        return found

    def _begin(self, now: float) -> None:
        self._due_s = now + EVERY_S
        self._reading = True
        try:
            self._start(self._take)
        except RuntimeError:  # no thread can be started: tried again at the next due time
            self._reading = False

    def _take(self) -> None:
        reading = None
        try:
            reading = self._read(self._folder)
        finally:
            self._readings.put(reading)

    def _sleep(self, now: float) -> list[str]:
        """One line for a night with a closed lid, though macOS wakes for seconds in between."""
        slept = self._clock.slept_s()
        if slept - self._slept_s >= 1:
            self._slept_s, self._slept_seen_s = slept, now
            return []
        asleep = self._slept_s - self._told_s
        if asleep < SLEEP_S or now - self._slept_seen_s < SLEEP_S:
            return []
        self._told_s = self._slept_s
        minutes = round(asleep / 60)
        return [
            f"the machine slept for {minutes} minute{'s' if minutes != 1 else ''}; speed and time left do without it"
        ]

    def _power(self, battery: Battery | None, now: float) -> list[str]:
        if battery is None:
            return []
        level = 100.0 if battery.percent is None else battery.percent
        shown = "" if battery.percent is None else f" ({level:.0f} %)"
        found = []
        if self._battery.rises(battery.discharging, not battery.discharging, now):
            found.append(f"running on battery{shown}: plug the machine in, training drains it fast and may run slower")
        for alarm, limit in ((self._low, LOW_PERCENT), (self._empty, EMPTY_PERCENT)):
            recovered = not battery.discharging or level >= limit + RECOVERED_PERCENT
            if alarm.rises(battery.discharging and level <= limit, recovered, now):
                found.append(
                    f"the battery is low{shown}: plug the machine in; what is not in a checkpoint would be lost"
                )
        return found[-1:]

    def _swap(self, reading: Reading) -> list[str]:
        """Growth since the first reading of what lies in swap, or of what was ever written there, whichever is more."""
        if self._first is None:
            self._first = reading
        pairs = (
            (reading.swap_used_bytes, self._first.swap_used_bytes),
            (reading.swapped_out_bytes, self._first.swapped_out_bytes),
        )
        growth = max([now - first for now, first in pairs if now is not None and first is not None], default=0)
        if growth < self._next_swap_bytes:
            return []
        while self._next_swap_bytes <= growth:
            self._next_swap_bytes *= 2
        return [
            f"{growth / 1e9:.1f} GB went to swap since the start: close other programs, or train with less memory "
            "(--plan proposes how)"
        ]

    def _space(self, reading: Reading, now: float) -> list[str]:
        free = reading.free_disk_bytes
        if free is None or not self._disk.rises(free < LOW_DISK_BYTES, free >= 1.5 * LOW_DISK_BYTES, now):
            return []
        return [f"{free / 1e9:.1f} GB are free on the disk of {self._folder}: free some, or no checkpoint can be saved"]


class _Alarm:
    """Rises once; again only after `over` has held for CALM_S."""

    def __init__(self) -> None:
        self._risen = False
        self._over_since: float | None = None

    def rises(self, wrong: bool, over: bool, now: float) -> bool:
        if self._risen and over:
            self._over_since = now if self._over_since is None else self._over_since
            if now - self._over_since >= CALM_S:
                self._risen, self._over_since = False, None
        elif self._risen:
            self._over_since = None
        if not wrong or self._risen:
            return False
        self._risen = True
        return True
