"""How much a training may take on this machine."""

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.memory import Memory


@dataclass(frozen=True)
class Room:
    """What this process may hold in all, measured before the model is loaded.

    `available_bytes` without anything being swapped, `swap_bytes` beyond that by swapping; `gpu_bytes` is what Metal
    recommends, None without it.
    """

    available_bytes: int
    swap_bytes: int
    gpu_bytes: int | None = None

    @classmethod
    def here(cls, memory: Memory, gpu_bytes: int | None = None, taken_bytes: int = 0) -> "Room":
        """From what the system says, and what this process has taken already.

        macOS makes swap as it needs it: there all memory of other programs can go out.
        """
        available = memory.total_bytes
        if memory.available_bytes is not None:
            available = min(available, memory.available_bytes + taken_bytes)
        if platform.system() == "Darwin":
            swap = memory.total_bytes - available
        else:
            swap = max(0, (memory.swap_total_bytes or 0) - (memory.swap_used_bytes or 0))
        return cls(available, swap, gpu_bytes)

    @property
    def fitting_bytes(self) -> int:
        return min(self.available_bytes, self.gpu_bytes or self.available_bytes)


def process_bytes() -> int:
    """What of this process lies in memory now; where the system does not tell, the most so far."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if platform.system() == "Darwin" else most * 1024
