"""Where the power comes from and how much is left: pmset on macOS, sysfs on Linux."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.memory import Run, output_of

_SOURCE = re.compile(r"^Now drawing from '([^']+)'", re.MULTILINE)
_CELL = re.compile(r"^ -(\S.*?)(?: \(id=\d+\))?\s+(\d{1,3})%;", re.MULTILINE)
SUPPLIES = Path("/sys/class/power_supply")


@dataclass(frozen=True)
class Battery:
    """`percent` is None where the system does not tell it."""

    discharging: bool
    percent: float | None


def read_battery(run: Run = output_of, supplies: Path = SUPPLIES) -> Battery | None:
    """This machine's battery; None where there is none, or none is told of. Never raises."""
    if platform.system() == "Darwin":
        return parse_pmset(run(["/usr/bin/pmset", "-g", "batt"]) or "")
    return sysfs_battery(supplies)


def parse_pmset(text: str) -> Battery | None:
    """`pmset -g batt`: a line with the source, then one for each battery; a desktop has the first line alone."""
    source = _SOURCE.search(text)
    cells = _CELL.findall(text)
    if source is None or (not cells and source[1] == "AC Power"):
        return None
    inner = [percent for name, percent in cells if name.startswith("InternalBattery")] or [p for _, p in cells]
    percent = min(100.0, float(inner[0])) if inner else None
    return Battery(source[1] != "AC Power", percent)  # else 'Battery Power' or 'UPS Power'


def sysfs_battery(supplies: Path) -> Battery | None:
    """/sys/class/power_supply; batteries of mice and headsets (scope Device) are not the machine's."""
    try:
        folders = sorted(supplies.iterdir())
    except OSError:
        return None
    mine = [f for f in folders if _line(f / "type") == "Battery" and _line(f / "scope") != "Device"]
    mine = [f for f in mine if _line(f / "present") != "0"]
    if not mine:
        return None
    levels = [float(level) for f in mine if (level := _line(f / "capacity")).isdecimal()]
    percent = min(100.0, sum(levels) / len(levels)) if levels else None
    return Battery(any(_line(f / "status") == "Discharging" for f in mine), percent)


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # a battery that was just taken out answers with ENODEV
        return ""
