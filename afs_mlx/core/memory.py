"""How much memory there is, how much of it may be taken and how much was swapped out. Asks the system, no mlx."""

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM_TIMEOUT_S = 3.0

type Run = Callable[[Sequence[str]], str | None]

_SWAP_USAGE = re.compile(r"\b(total|used) = (\d+(?:[.,]\d+)?)([KMGT]?)")
_UNIT = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_VM_STAT_PAGE = re.compile(r"page size of (\d+) bytes")
_VM_STAT_LINE = re.compile(r'^"?([^":]+)"?:\s+(\d+)\.?\s*$', re.MULTILINE)
_MEMINFO_LINE = re.compile(r"^(\w[\w()]*):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Memory:
    """What the system says now; None where it does not say.

    `total_bytes` is the machine's memory, or the control group's limit where that is lower (`limited`).
    `swapped_out_bytes` counts since the machine was started and never falls. On macOS `swap_total_bytes` is no limit:
    the system makes swap files as it needs them.
    """

    total_bytes: int
    available_bytes: int | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None
    swapped_out_bytes: int | None
    limited: bool = False

    @classmethod
    def here(cls) -> "Memory":
        """This machine's memory; on macOS by two programs, a few milliseconds each. Never raises."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if platform.system() == "Darwin":
            return darwin_memory(total, output_of)
        return linux_memory(total, Path("/"), os.sysconf("SC_PAGE_SIZE"))


def output_of(command: Sequence[str]) -> str | None:
    """What a program prints; None when it is missing, fails, or takes longer than `PROGRAM_TIMEOUT_S`."""
    try:
        finished = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout if finished.returncode == 0 else None


def darwin_memory(total_bytes: int, run: Run) -> Memory:
    """macOS: `vm_stat` and `sysctl vm.swapusage`.

    Available are the pages that are free, speculative (read ahead), purgeable or inactive. vm_stat prints free pages
    without the speculative ones (vm_stat.c in Apple's system_cmds), so nothing is counted twice there.
    """
    pages = parse_vm_stat(run(["/usr/bin/vm_stat"]) or "")
    usage = parse_swap_usage(run(["/usr/sbin/sysctl", "vm.swapusage"]) or "")
    names = ("Pages free", "Pages speculative", "Pages inactive")
    available = None
    if all(name in pages for name in names):
        available = min(total_bytes, sum(pages[name] for name in names) + pages.get("Pages purgeable", 0))
    return Memory(total_bytes, available, usage.get("total"), usage.get("used"), pages.get("Swapouts"))


def linux_memory(total_bytes: int, root: Path, page_bytes: int) -> Memory:
    """Linux: /proc/meminfo and /proc/vmstat, and the control groups (v2 or v1) that this process lies in."""
    info = parse_meminfo(_text(root / "proc/meminfo"))
    available, swap_total = info.get("MemAvailable"), info.get("SwapTotal")
    swap_used = None if swap_total is None or "SwapFree" not in info else swap_total - info["SwapFree"]
    swapped_out = re.search(r"^pswpout (\d+)$", _text(root / "proc/vmstat"), re.MULTILINE)
    total, limited = total_bytes, False
    for limit, free in _cgroup_limits(root):
        if limit < total:
            total, limited = limit, True
        if limit < total_bytes:
            available = free if available is None else min(available, free)
    return Memory(
        total, available, swap_total, swap_used, int(swapped_out[1]) * page_bytes if swapped_out else None, limited
    )


def parse_vm_stat(text: str) -> dict[str, int]:
    """`vm_stat`'s counts in bytes by their printed name; empty when the page size is not told."""
    page = _VM_STAT_PAGE.search(text)
    if page is None:
        return {}
    return {name: int(count) * int(page[1]) for name, count in _VM_STAT_LINE.findall(text)}


def parse_swap_usage(text: str) -> dict[str, int]:
    """`total` and `used` of `sysctl vm.swapusage` in bytes; decimals with a point or, in some locales, a comma."""
    found = _SWAP_USAGE.findall(text)
    return {name: round(float(number.replace(",", ".")) * _UNIT[unit]) for name, number, unit in found}


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes; lines without a unit (huge page counts) are left out."""
    return {name: int(count) * 1024 for name, count in _MEMINFO_LINE.findall(text)}


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, what is left of it) in bytes for this process's group and those around it.

    Files of a cache that can be dropped do not count as taken. In a container the path that /proc tells may be the
    host's; then only the mount's own top exists.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group != top and top not in group.parents:
                break
            limit, used = _text(group / names[0]).strip(), _text(group / names[1]).strip()
            if limit.isdecimal() and used.isdecimal():
                cached = re.search(rf"^{names[2]} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
                taken = int(used) - (int(cached[1]) if cached else 0)
                yield int(limit), max(0, int(limit) - max(0, taken))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
