"""Time that the machine was awake, and time that it slept.

Which clock counts sleep:

- `time.monotonic` does not. macOS: mach_absolute_time (CPython's documentation), the same as CLOCK_UPTIME_RAW, which
  "does not increment while the system is asleep" (clock_gettime(3)). Linux: CLOCK_MONOTONIC, which "does not count time
  that the system is suspended" (clock_gettime(2)).
- CLOCK_BOOTTIME, Linux only, does (clock_gettime(2)).
- CLOCK_MONOTONIC_RAW does on macOS, where Apple names it as the equal of mach_continuous_time, "including while the
  system is asleep"; on Linux it does not.

So the two answers below come from one pair of clocks on each system, and their difference is the sleep. A process that
is stopped does not sleep, nor does a virtual machine that is paused: both clocks go on, or neither does.
"""

import sys
import time
from collections.abc import Callable


def counting_sleep() -> float:
    """Seconds of a clock that goes on while the machine sleeps; `time.monotonic` where there is none."""
    name = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    clock: int | None = getattr(time, name, None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class AwakeClock:
    """Seconds since it was made, split into awake and asleep. Two sources, of which only `total` counts sleep."""

    def __init__(
        self, awake: Callable[[], float] = time.monotonic, total: Callable[[], float] = counting_sleep
    ) -> None:
        self._awake, self._total = awake, total
        self._started = awake()
        # `awake` is read first here and last in slept_s: what passes between two readings must not look like sleep.
        self._offset = total() - self._started
        self._slept_s = 0.0

    def elapsed_s(self) -> float:
        """Seconds awake."""
        return self._awake() - self._started

    def slept_s(self) -> float:
        """Seconds asleep: never falls, never more than they were."""
        total = self._total()
        self._slept_s = max(self._slept_s, total - self._awake() - self._offset)
        return self._slept_s
