"""Memory as the systems print it: recorded formats, odd locales, missing programs, control groups of both versions."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from afs_mlx.core import memory
from afs_mlx.core.memory import (
    Memory,
    darwin_memory,
    linux_memory,
    output_of,
    parse_meminfo,
    parse_swap_usage,
    parse_vm_stat,
)

GB = 10**9
PAGE = 16384

VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               20563.
Pages active:                            331402.
Pages inactive:                          327821.
Pages speculative:                         2644.
Pages throttled:                              0.
Pages wired down:                        147513.
Pages purgeable:                           4098.
"Translation faults":                 512347890.
Pages copy-on-write:                   20347156.
Pages zero filled:                    263456187.
Pages reactivated:                      8843210.
Pages purged:                           1203456.
File-backed pages:                       223456.
Anonymous pages:                         438411.
Pages stored in compressor:              402356.
Pages occupied by compressor:            170234.
Decompressions:                         5643210.
Compressions:                           7654321.
Pageins:                                9876543.
Pageouts:                                 34567.
Swapins:                                 120034.
Swapouts:                                154321.
"""
SWAP_USAGE = "vm.swapusage: total = 2048.00M  used = 1017.50M  free = 1030.50M  (encrypted)\n"

MEMINFO = """\
MemTotal:       16303428 kB
MemFree:         1203844 kB
MemAvailable:    9184532 kB
Buffers:          412340 kB
Cached:          7012344 kB
SwapCached:         1204 kB
Active(anon):    4123456 kB
SwapTotal:       2097148 kB
SwapFree:        1572860 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""
VMSTAT = "nr_free_pages 300961\npgpgout 22334455\npswpin 12\npswpout 4096\npgfault 99\n"


def programs(**outputs: str | None) -> memory.Run:
    def run(command: Sequence[str]) -> str | None:
        return outputs[Path(command[0]).name]

    return run


def linux_root(tmp_path: Path, files: dict[str, str]) -> Path:
    root = tmp_path / "root"
    for name, text in {"proc/meminfo": MEMINFO, "proc/vmstat": VMSTAT, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_here_is_this_machine() -> None:
    here = Memory.here()
    assert 1 << 28 < here.total_bytes < 1 << 50
    assert here.available_bytes is not None
    assert 0 < here.available_bytes <= here.total_bytes


def test_a_mac_counts_free_speculative_inactive_and_purgeable_pages() -> None:
    found = darwin_memory(16 << 30, programs(vm_stat=VM_STAT, sysctl=SWAP_USAGE))
    assert found.available_bytes == (20563 + 2644 + 327821 + 4098) * PAGE
    assert found.swap_total_bytes == 2048 << 20
    assert found.swap_used_bytes == round(1017.5 * (1 << 20))
    assert found.swapped_out_bytes == 154321 * PAGE
    assert (found.total_bytes, found.limited) == (16 << 30, False)


def test_an_intel_mac_has_other_pages() -> None:
    text = VM_STAT.replace("16384", "4096")
    assert parse_vm_stat(text)["Pages free"] == 20563 * 4096


def test_a_mac_without_its_programs_says_nothing_but_its_size() -> None:
    found = darwin_memory(8 << 30, programs(vm_stat=None, sysctl=None))
    assert found == Memory(8 << 30, None, None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mach Virtual Memory Statistics:\nPages free: 20563.\n",  # no page size
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free: many.\nPages inactive: 3.\n",
        "vm_stat: failed to get statistics: (os/kern) failure\n",
    ],
)
def test_a_malformed_vm_stat_is_no_number(text: str) -> None:
    assert darwin_memory(8 << 30, programs(vm_stat=text, sysctl=SWAP_USAGE)).available_bytes is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SWAP_USAGE, {"total": 2048 << 20, "used": round(1017.5 * (1 << 20))}),
        (SWAP_USAGE.replace(".", ",").replace("vm,", "vm."), {"total": 2048 << 20, "used": round(1017.5 * (1 << 20))}),
        ("vm.swapusage: total = 4.00G  used = 1.50G  free = 2.50G", {"total": 4 << 30, "used": 3 << 29}),
        ("total = 0.00M  used = 0.00M  free = 0.00M  (encrypted)", {"total": 0, "used": 0}),
        ("vm.swapusage: total = lots", {}),
        ("sysctl: unknown oid 'vm.swapusage'", {}),
        ("", {}),
    ],
)
def test_swap_usage_in_each_format(text: str, expected: dict[str, int]) -> None:
    assert parse_swap_usage(text) == expected


def test_linux_reads_proc(tmp_path: Path) -> None:
    found = linux_memory(16303428 * 1024, linux_root(tmp_path, {}), 4096)
    assert found.available_bytes == 9184532 * 1024
    assert found.swap_total_bytes == 2097148 * 1024
    assert found.swap_used_bytes == (2097148 - 1572860) * 1024
    assert found.swapped_out_bytes == 4096 * 4096
    assert not found.limited


def test_lines_of_meminfo_without_a_unit_are_no_bytes() -> None:
    assert "HugePages_Total" not in parse_meminfo(MEMINFO)
    assert parse_meminfo(MEMINFO)["Active(anon)"] == 4123456 * 1024


def test_linux_without_proc_says_nothing(tmp_path: Path) -> None:
    assert linux_memory(GB, tmp_path, 4096) == Memory(GB, None, None, None, None)


def test_a_version_2_control_group_limits(tmp_path: Path) -> None:
    root = linux_root(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.current": "1000\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{4 * GB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{3 * GB}\n",
            "sys/fs/cgroup/user.slice/memory.stat": f"anon 5\ninactive_file {GB}\nactive_file 7\n",
        },
    )
    found = linux_memory(16 * GB, root, 4096)
    assert (found.total_bytes, found.available_bytes, found.limited) == (4 * GB, 2 * GB, True)


def test_a_version_1_control_group_limits_also_where_proc_tells_the_hosts_path(tmp_path: Path) -> None:
    root = linux_root(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GB}\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
        },
    )
    found = linux_memory(16 * GB, root, 4096)
    assert (found.total_bytes, found.available_bytes, found.limited) == (2 * GB, GB + 500, True)


def test_a_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    root = linux_root(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\nnonsense\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GB}\n",
        },
    )
    found = linux_memory(16 * GB, root, 4096)
    assert (found.total_bytes, found.available_bytes, found.limited) == (16 * GB, 9184532 * 1024, False)


def test_a_program_answers_fails_is_missing_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_of([sys.executable, "-c", "print('1,5')"]) == "1,5\n"
    assert output_of([sys.executable, "-c", "raise SystemExit(1)"]) is None
    assert output_of([str(tmp_path / "absent")]) is None
    monkeypatch.setattr(memory, "PROGRAM_TIMEOUT_S", 0.2)
    assert output_of([sys.executable, "-c", "import signal; signal.pause()"]) is None


def test_programs_are_asked_in_the_c_locale() -> None:
    assert output_of([sys.executable, "-c", "import os; print(os.environ['LC_ALL'])"]) == "C\n"
