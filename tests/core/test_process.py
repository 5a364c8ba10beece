"""Limits on outside programs. Python itself is the program: it is there, and it can misbehave in every way needed."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.process import Finished, run_limited

MEGABYTE = 1 << 20


def run(
    tmp_path: Path, code: str, *arguments: str, timeout_s: float = 30, cpu_s: int = 20, output_bytes: int = 4096
) -> Finished:
    return run_limited(
        [sys.executable, "-I", "-S", "-c", code, *arguments],
        cwd=tmp_path,
        timeout_s=timeout_s,
        cpu_s=cpu_s,
        memory_bytes=512 * MEGABYTE,
        file_bytes=MEGABYTE,
        output_bytes=output_bytes,
    )


def gone(pid: int) -> bool:
    """Whether a process is dead; a zombie that nobody reaped yet counts as dead."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def test_streams_and_return_code(tmp_path: Path) -> None:
    done = run(tmp_path, "import os; os.write(1, b'out'); os.write(2, b'err'); os._exit(7)")
    assert done == Finished(7, b"out", b"err", timed_out=False, truncated=False)


def test_runs_in_the_folder_given(tmp_path: Path) -> None:
    done = run(tmp_path, "import os; os.write(1, os.getcwdb())")
    assert Path(os.fsdecode(done.stdout)).resolve() == tmp_path.resolve()


def test_arguments_meet_no_shell(tmp_path: Path) -> None:
    hostile = "$(touch canary); `touch canary` > canary && * \n 'x"
    done = run(tmp_path, "import os, sys; os.write(1, sys.argv[1].encode())", hostile)
    assert done.stdout.decode() == hostile
    assert list(tmp_path.iterdir()) == []


def test_environment_is_empty_and_stdin_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFS_SECRET", "token")
    code = "import os, sys; os.write(1, repr((sorted(os.environ), os.read(0, 10))).encode())"
    names, stdin = eval(run(tmp_path, code).stdout)
    # What the second interpreter sets for itself under the C locale, and macOS for every process.
    assert set(names) <= {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    assert stdin == b""


def test_output_is_capped_while_it_is_read(tmp_path: Path) -> None:
    done = run(tmp_path, "import os\nfor _ in range(3000): os.write(1, b'x' * 65536)", output_bytes=1000)
    assert done.stdout == b"x" * 1000
    assert done.truncated
    assert done.returncode == 0


def test_output_of_exactly_the_limit_is_not_truncated(tmp_path: Path) -> None:
    done = run(tmp_path, "import os; os.write(2, b'x' * 1000)", output_bytes=1000)
    assert (done.stderr, done.truncated) == (b"x" * 1000, False)


def test_endless_output_ends_at_the_timeout(tmp_path: Path) -> None:
    done = run(tmp_path, "import os\nwhile True: os.write(1, b'x' * 65536)", timeout_s=1)
    assert (done.timed_out, done.returncode, len(done.stdout)) == (True, -signal.SIGKILL, 4096)


def test_wall_timeout_kills_the_children_too(tmp_path: Path) -> None:
    code = "import os, time\npid = os.fork()\nif pid: os.write(1, str(pid).encode())\ntime.sleep(600)"
    done = run(tmp_path, code, timeout_s=1)
    assert done.timed_out
    assert gone(int(done.stdout))


def test_a_program_that_closes_its_streams_still_times_out(tmp_path: Path) -> None:
    done = run(tmp_path, "import os, time; os.close(1); os.close(2); time.sleep(600)", timeout_s=1)
    assert (done.timed_out, done.returncode) == (True, -signal.SIGKILL)


def test_children_left_behind_are_killed(tmp_path: Path) -> None:
    """Neither a child that holds the pipe open nor one that floods it keeps the caller waiting."""
    for body in ("time.sleep(600)", "while True: os.write(2, b'x' * 4096)"):
        code = f"import os, time\npid = os.fork()\nif pid: os.write(1, str(pid).encode()); os._exit(0)\n{body}"
        done = run(tmp_path, code, timeout_s=60)
        assert (done.timed_out, done.returncode) == (False, 0)
        assert gone(int(done.stdout))


def test_cpu_limit(tmp_path: Path) -> None:
    done = run(tmp_path, "while True: pass", cpu_s=1)
    assert (done.timed_out, done.returncode) == (False, -signal.SIGXCPU)


def test_file_size_limit(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
    code += "with open('big', 'wb', 0) as f:\n  while True: f.write(b'x' * 65536)"
    done = run(tmp_path, code)
    assert done.returncode == -signal.SIGXFSZ
    assert (tmp_path / "big").stat().st_size == MEGABYTE


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not honour RLIMIT_AS")
def test_memory_limit(tmp_path: Path) -> None:
    done = run(tmp_path, "b = bytearray(700 << 20)")
    assert done.returncode == 1
    assert b"MemoryError" in done.stderr


def test_interrupt_kills_the_group(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"

    def interrupt() -> None:
        while not (marker.exists() and marker.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, code)
    thread.join()
    assert gone(int(marker.read_text()))


def test_missing_program_and_folder_name_themselves(tmp_path: Path) -> None:
    limits = {"timeout_s": 5, "cpu_s": 5, "memory_bytes": MEGABYTE, "file_bytes": 1, "output_bytes": 1}
    with pytest.raises(MissingError, match="no such program"):
        run_limited(["no-such-program-here"], cwd=tmp_path, **limits)
    with pytest.raises(AfsError, match="folder to run in"):
        run_limited([sys.executable], cwd=tmp_path / "none", **limits)


def test_a_file_that_is_no_program_ends_with_126(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF not really")
    broken.chmod(0o755)
    done = run_limited(
        [broken], cwd=tmp_path, timeout_s=30, cpu_s=5, memory_bytes=1 << 29, file_bytes=MEGABYTE, output_bytes=4096
    )
    assert done.returncode == 126
    assert b"cannot run" in done.stderr
