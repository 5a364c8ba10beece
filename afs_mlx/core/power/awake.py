"""Keeping a Mac awake while a job runs, by the system's own program."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CAFFEINATE = Path("/usr/bin/caffeinate")
_END_S = 2.0


class KeptAwake:
    """Whether the machine is kept from idle sleep, and a sentence for the person."""

    def __init__(self, text: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self._text = text
        self._process = process

    @property
    def works(self) -> bool:
        """Asked anew each time: the program may have ended at once, or have been killed."""
        return self._process is not None and self._process.poll() is None

    @property
    def text(self) -> str:
        if self._process is None or self.works:
            return self._text
        return f"the machine may fall asleep: {CAFFEINATE.name} ended with {self._process.returncode}"


@contextlib.contextmanager
def keep_awake(program: Path = CAFFEINATE, platform: str = sys.platform) -> Iterator[KeptAwake]:
    """Keep a Mac from idle sleep until the block ends; does nothing elsewhere, and never raises by itself.

    `caffeinate -i -w PID` (caffeinate(8)): -i asserts against idle sleep, -w ends it with the process PID, so it is
    gone also after a SIGKILL. -s is for mains power only. Nothing keeps a Mac awake with a closed lid and no display:
    with the assertion behind -i, IOPMLib.h says, it "may still sleep for lid close, Apple menu, low battery".
    """
    if platform != "darwin":
        yield KeptAwake("the machine is not kept awake: only macOS is asked to stay so")
        return
    try:
        process = subprocess.Popen(
            [program, "-i", "-w", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the job, which still has a step to end and a checkpoint to save
        )
    except OSError as error:
        yield KeptAwake(f"the machine may fall asleep: {program} cannot be run ({error.strerror})")
        return
    try:
        yield KeptAwake("the machine is kept awake; a closed lid still puts it to sleep", process)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait(_END_S)
