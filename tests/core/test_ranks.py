"""The launcher with real processes: ranks that succeed, fail, are killed or hang, and a launcher that is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from afs_mlx.core.errors import AfsError, ExitCode, MissingError
from afs_mlx.core.hosts import Cluster, Host, read_hosts
from afs_mlx.core.rank_process import ssh_command
from afs_mlx.core.ranks import launch, rank_here

pytestmark = pytest.mark.slow

# What a rank of a test begins with. `tell` leaves a file that the test waits for.
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
from afs_mlx.core.rank_process import ALIVE, LOST, WAITING
from afs_mlx.core.ranks import beat
rank, folder = int(os.environ["MLX_RANK"]), Path(sys.argv[1])
def tell(name, text=""):
    (folder / f".{name}").write_text(text or str(os.getpid()))
    (folder / f".{name}").rename(folder / name)
def sleep(seconds=600):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
"""
LAUNCHER = """
import json, os, sys
from afs_mlx.core.errors import AfsError
from afs_mlx.core.hosts import read_hosts
from afs_mlx.core.ranks import launch
try:
    code = launch(json.loads(sys.argv[1]), read_hosts("2"), grace_s=float(sys.argv[2]))
except AfsError as error:
    print(error, file=sys.stderr)
    code = error.code
try:
    os.waitpid(-1, os.WNOHANG)
    code = 99  # a child is left, or a zombie
except ChildProcessError:
    pass
sys.exit(code)
"""
TWO = read_hosts("2")


def command(folder: Path, code: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + code, str(folder)]


def run(folder: Path, code: str, *, stall_s: float = 60, cluster: Cluster = TWO) -> int:
    return launch(command(folder, code), cluster, resume="afs-mlx train din --resume", stall_s=stall_s)


def failure(folder: Path, code: str, *, stall_s: float = 60, cluster: Cluster = TWO) -> AfsError:
    with pytest.raises(AfsError) as caught:
        run(folder, code, stall_s=stall_s, cluster=cluster)
    assert caught.value.fix.endswith("afs-mlx train din --resume")
    return caught.value


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def pid_told(folder: Path, name: str) -> int:
    wait_for((folder / name).exists, f"{name} was not told")
    return int((folder / name).read_text())


def gone(pid: int) -> bool:
    """Whether a process is dead; an orphan that init has not reaped yet counts as dead."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False


def test_ranks_are_told_who_they_are_and_all_succeed(tmp_path: Path) -> None:
    code = """
hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
tell(f"rank{rank}", json.dumps([hosts, sys.stdin.read(), "MLX_IBV_DEVICES" in os.environ]))
"""
    assert run(tmp_path, code) == ExitCode.OK
    told = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    hosts, stdin, jaccl = told[0]
    assert len({address for row in hosts for address in row}) == 2
    assert all(row[0].startswith("127.0.0.1:") for row in hosts)
    assert (stdin, jaccl) == ("", False)


def test_only_rank_0_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "print('answer', rank); print('note', rank, file=sys.stderr)") == ExitCode.OK
    assert capfd.readouterr() == ("answer 0\n", "note 0\n")


def test_rank_0_keeps_our_terminal(tmp_path: Path) -> None:
    controller, terminal = os.openpty()
    try:
        code = "tell(f'rank{rank}', json.dumps([sys.stdout.isatty(), sys.stderr.isatty()]))"
        launcher = [sys.executable, "-c", LAUNCHER, json.dumps(command(tmp_path, code)), "5"]
        done = subprocess.run(launcher, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, check=False)
    finally:
        os.close(terminal)
        os.close(controller)
    assert done.returncode == 0
    assert [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2)] == [[True, True], [False, False]]


def test_a_rank_that_exits_with_3_ends_the_others(tmp_path: Path) -> None:
    code = """
tell(f"rank{rank}")
if rank == 0:
    sleep()
while not (folder / "rank0").exists():
    time.sleep(0.01)
print("loading")
print("the base is missing", file=sys.stderr)
sys.exit(3)
"""
    error = failure(tmp_path, code)
    assert error.code == ExitCode.MISSING
    assert str(error).startswith(
        "rank 1 of 2 on localhost: ended with exit code 3, so all ranks were ended; its last lines:\n"
    )
    assert {"  loading", "  the base is missing"} <= set(error.what.splitlines())
    assert gone(pid_told(tmp_path, "rank0"))


def test_the_message_of_rank_0_is_not_said_twice(tmp_path: Path) -> None:
    error = failure(tmp_path, "sys.exit(1 if rank == 0 else sleep())")
    assert error.what == "ended with exit code 1, so all ranks were ended; its own messages stand above"
    assert error.where == "rank 0 of 2 on localhost"


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    code = "tell(f'rank{rank}')\nif rank == 0: sleep()\nos.kill(os.getpid(), signal.SIGKILL)"
    error = failure(tmp_path, code)
    assert "rank 1 of 2" in error.where
    assert "was ended by SIGKILL" in error.what


def test_the_one_that_lost_another_is_not_blamed(tmp_path: Path) -> None:
    """Rank 0 fails first, because rank 1's connection broke; rank 1's own end is seen only then."""
    code = """
if rank == 0:
    beat(LOST)
    tell("lost")
    sys.exit(1)
while not (folder / "lost").exists():
    time.sleep(0.01)
sleep(0.3)
os.kill(os.getpid(), signal.SIGSEGV)
"""
    error = failure(tmp_path, code)
    assert "rank 1 of 2" in error.where
    assert "SIGSEGV" in error.what


def test_a_rank_that_hangs_is_found_by_the_watchdog(tmp_path: Path) -> None:
    """Rank 0 waits in a collective, silent for longer than rank 1: it is not the one that hangs."""
    code = """
signal.signal(signal.SIGTERM, signal.SIG_DFL)
if rank == 0:
    beat(WAITING)
    tell("rank0")
    sleep()
print("in an endless loop", flush=True)
while not (folder / "rank0").exists():
    beat()
    time.sleep(0.05)
tell("rank1")
sleep()
"""
    error = failure(tmp_path, code, stall_s=2)
    assert error.where == "rank 1 of 2 on localhost"
    assert error.what == (
        "no sign of life for 2 s (rank 1), so all ranks were ended; its last lines:\n  in an endless loop"
    )
    assert error.code == ExitCode.ERROR
    assert gone(pid_told(tmp_path, "rank0"))
    assert gone(pid_told(tmp_path, "rank1"))


def test_a_deadlock_is_said_to_be_one(tmp_path: Path) -> None:
    error = failure(tmp_path, "beat(WAITING)\nsleep()", stall_s=2)
    assert "every rank has waited for the others for 2 s" in error.what


def test_who_beats_is_not_stalled(tmp_path: Path) -> None:
    """Rank 1 waits for longer than the watchdog's limit, while rank 0 works and says so."""
    code = """
if rank == 1:
    beat(WAITING)
    while not (folder / "done").exists():
        time.sleep(0.01)
    sys.exit()
for _ in range(60):
    beat()
    time.sleep(0.05)
tell("done")
"""
    assert run(tmp_path, code, stall_s=2) == ExitCode.OK


STEPS = """
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda received, _: asked.append(received))
tell(f"rank{rank}")
while not asked:
    time.sleep(0.01)
tell(f"asked{rank}", json.dumps(asked))
"""


type Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a launcher in a process of its own, in a group of its own as a shell would."""
    launchers: list[subprocess.Popen[bytes]] = []

    def started(code: str, grace_s: float = 20) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", LAUNCHER, json.dumps(command(tmp_path, code)), str(grace_s)]
        launchers.append(subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE))
        return launchers[-1]

    yield started
    for launcher in launchers:
        launcher.kill()
        launcher.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_rank_once(tmp_path: Path, start: Start, number: signal.Signals) -> None:
    launcher = start(STEPS + "sleep(0.3)\ntell(f'saved{rank}', json.dumps(asked))\nsys.exit(130)")
    for rank in range(2):
        pid_told(tmp_path, f"rank{rank}")
    os.killpg(launcher.pid, number)  # the whole group, as a terminal does
    assert launcher.wait(30) == ExitCode.INTERRUPTED
    assert [json.loads((tmp_path / f"saved{rank}").read_text()) for rank in range(2)] == [[number], [number]]


def test_the_second_ctrl_c_kills(tmp_path: Path, start: Start) -> None:
    launcher = start(STEPS + "sleep()")
    pids = [pid_told(tmp_path, f"rank{rank}") for rank in range(2)]
    launcher.send_signal(signal.SIGINT)
    wait_for(lambda: all((tmp_path / f"asked{rank}").exists() for rank in range(2)), "the first signal did not arrive")
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(30) == ExitCode.INTERRUPTED
    assert all(gone(pid) for pid in pids)


def test_a_failure_after_ctrl_c_is_still_one(tmp_path: Path, start: Start) -> None:
    launcher = start(STEPS + "sys.exit(130 if rank == 0 else 1)")
    for rank in range(2):
        pid_told(tmp_path, f"rank{rank}")
    launcher.send_signal(signal.SIGINT)
    _, stderr = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    assert b"rank 1 of 2 on localhost: ended with exit code 1" in stderr


def test_ranks_save_and_end_when_the_launcher_is_killed(tmp_path: Path, start: Start) -> None:
    launcher = start(STEPS)
    pids = [pid_told(tmp_path, f"rank{rank}") for rank in range(2)]
    launcher.kill()
    launcher.communicate(timeout=30)
    for rank in range(2):
        wait_for((tmp_path / f"asked{rank}").exists, "the rank was not asked to stop")
        assert json.loads((tmp_path / f"asked{rank}").read_text()) == [signal.SIGTERM]
    wait_for(lambda: all(gone(pid) for pid in pids), "an orphan is left")


def test_ranks_that_cannot_end_are_killed_after_their_launcher(tmp_path: Path, start: Start) -> None:
    """A stopped process handles no signal, and neither does one that waits inside MLX."""
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell(f'rank{rank}')\nos.kill(os.getpid(), signal.SIGSTOP)"
    launcher = start(code, grace_s=0.3)
    pids = [pid_told(tmp_path, f"rank{rank}") for rank in range(2)]
    launcher.kill()
    launcher.communicate(timeout=30)
    wait_for(lambda: all(gone(pid) for pid in pids), "an orphan is left")


def test_what_a_rank_leaves_behind_is_ended(tmp_path: Path, start: Start) -> None:
    code = """
child = os.fork()
if child == 0:
    sleep()
tell(f"child{rank}", str(child))
"""
    launcher = start(code)
    assert launcher.wait(30) == ExitCode.OK
    pids = [pid_told(tmp_path, f"child{rank}") for rank in range(2)]
    wait_for(lambda: all(gone(pid) for pid in pids), "a grandchild is left")


def test_a_command_that_does_not_exist() -> None:
    with pytest.raises(AfsError, match="ended with exit code 126") as caught:
        launch(["/no/such/python"], TWO)
    assert caught.value.code == ExitCode.ERROR


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run(tmp_path, "") == ExitCode.OK
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script on the PATH in front of everything."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / name).write_text("#!/bin/sh\n" + script, encoding="utf-8")
    (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")


# As ssh does: the login shell gets the words as one line, and the connection's end is the end of stdin.
FAKE_SSH = 'while [ "$1" != -- ]; do shift; done; echo "$2" >"$AFS_TEST/host"; exec sh -c "$3"\n'
REMOTE = Cluster((Host("localhost", True, ("10.255.255.1",)), Host("mac two", False, ("10.255.255.2",))))


def test_a_rank_below_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a login shell in place of ssh: quoting, files, variables, beats, the signal and the exit code."""
    program(tmp_path, "ssh", FAKE_SSH, monkeypatch)
    monkeypatch.setenv("AFS_TEST", str(tmp_path))
    monkeypatch.setenv("AFS_MLX_HOME", 'it\'s "quoted" $HOME')
    here = tmp_path / "a 'folder' with $(blanks)"
    here.mkdir()
    monkeypatch.chdir(here)
    code = """
hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
for _ in range(60):  # silence would be over the limit
    beat()
    time.sleep(0.05)
tell(f"rank{rank}", json.dumps([hosts, os.getcwd(), os.environ["AFS_MLX_HOME"], sys.argv[2]]))
if rank == 1:
    tell("file", os.environ["MLX_HOSTFILE"])
    print("said by rank 1")
    sys.exit(4)
sleep()
"""
    with pytest.raises(AfsError) as caught:
        launch([*command(tmp_path, code), "a b; $(touch canary) 'x"], REMOTE, stall_s=2)
    assert caught.value.code == ExitCode.REFUSED
    assert caught.value.what.splitlines()[-1] == "  said by rank 1"  # and no beat in it
    assert (tmp_path / "host").read_text() == "mac two\n"
    told = json.loads((tmp_path / "rank1").read_text())
    addresses = [["10.255.255.1:32323"], ["10.255.255.2:32324"]]
    assert told == [addresses, str(here), 'it\'s "quoted" $HOME', "a b; $(touch canary) 'x"]
    assert list(here.iterdir()) == []
    assert not Path((tmp_path / "file").read_text()).exists()


def test_signals_go_through_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "ssh", FAKE_SSH, monkeypatch)
    monkeypatch.setenv("AFS_TEST", str(tmp_path))

    def interrupt() -> None:
        for rank in range(2):
            pid_told(tmp_path, f"rank{rank}")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(tmp_path, STEPS + "sys.exit(130)", cluster=REMOTE) == ExitCode.INTERRUPTED
    thread.join()
    assert [json.loads((tmp_path / f"asked{rank}").read_text()) for rank in range(2)] == [[2], [2]]


def test_a_host_that_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "ssh", "echo 'ssh: Could not resolve hostname mac two' >&2; exit 255\n", monkeypatch)
    error = failure(tmp_path, "tell('rank0')\nsleep()", cluster=REMOTE)
    assert error.where == "rank 1 of 2 on mac two"
    assert "ended with exit code 255" in error.what
    assert "Could not resolve hostname" in error.what
    assert error.fix.startswith("see that `ssh -o BatchMode=yes 'mac two' true` works from here, then ")


def test_ssh_never_asks_and_takes_no_host_for_an_option() -> None:
    words = ssh_command("-oProxyCommand=x", ["python"], {}, {}, 5)
    assert words[:4] == ["ssh", "-T", "-o", "BatchMode=yes"]
    assert words[-3:-1] == ["--", "-oProxyCommand=x"]


def test_jaccl_variables_are_those_of_mlx(tmp_path: Path) -> None:
    hosts = tuple(
        Host("localhost", True, ("127.0.0.1",), rdma) for rdma in ((None, "rdma_en2"), (("rdma_en2", "rdma_en3"), None))
    )
    code = """
names = ("MLX_RANK", "MLX_JACCL_COORDINATOR", "MLX_JACCL_RING", "MLX_METAL_FAST_SYNCH")
devices = json.loads(Path(os.environ["MLX_IBV_DEVICES"]).read_text())
tell(f"rank{rank}", json.dumps([[os.environ.get(name) for name in names], devices]))
"""
    cluster = Cluster(hosts, "jaccl-ring", (("MLX_METAL_FAST_SYNCH", "1"),))
    assert run(tmp_path, code, cluster=cluster) == ExitCode.OK
    assert json.loads((tmp_path / "rank1").read_text()) == [
        ["1", "127.0.0.1:32323", "1", "1"],
        [[None, "rdma_en2"], [["rdma_en2", "rdma_en3"], None]],
    ]


MPI = Cluster((Host("localhost", True, ()), Host("mac2", False, ()), Host("mac2", False, ())), "mpi", (("A", "b c"),))


def test_mpi_is_left_to_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'cat "$4" >"$AFS_TEST/hosts"; for word; do echo "$word"; done >"$AFS_TEST/words"; exit 7\n'
    program(tmp_path, "mpirun", script, monkeypatch)
    monkeypatch.setenv("AFS_TEST", str(tmp_path))
    with pytest.raises(AfsError, match="ended with exit code 7") as caught:
        launch(["python", "-c", "pass"], MPI)
    assert caught.value.where == "mpirun"
    assert (tmp_path / "hosts").read_text() == "localhost slots=1\nmac2 slots=2\n"
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["--output", ":raw", "--hostfile"]
    assert words[4:] == ["-x", "A=b c", "--", "python", "-c", "pass"]


def test_mpi_without_mpirun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="mpirun is not on the PATH"):
        launch(["python"], MPI)


def test_who_am_i(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert rank_here() == 0
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    assert rank_here() == 2
    monkeypatch.setenv("MLX_RANK", "1")
    assert rank_here() == 1
