"""What this machine is: processor, memory, system. Read from the operating system, no mlx."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """The parts of a machine that a result depends on."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    python: str

    @classmethod
    def here(cls) -> "Machine":
        return cls(
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            processor=_processor(),
            cores=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            python=platform.python_version(),
        )

    @property
    def apple_silicon(self) -> bool:
        return self.system.startswith("Darwin") and self.system.endswith("arm64")

    @property
    def rosetta(self) -> bool:
        """An Intel Python on an Apple chip: mlx has no wheel there."""
        return self.system.startswith("Darwin") and not self.apple_silicon and "Apple" in self.processor

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


def _processor() -> str:
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
