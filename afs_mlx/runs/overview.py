"""Every run on this machine: which there are, which one is meant, how it stands, its main figures."""

import os
import platform
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import Run
from afs_mlx.runs.history import METRICS, MOST, History, read_history

MOST_NAMES = 8


@dataclass(frozen=True)
class Figures:
    """What a run came to, from run.json where it says so, else from metrics.jsonl. None: not known."""

    steps: int
    total_steps: int | None
    base_valid_loss: float | None
    best_valid_loss: float | None
    best_step: int | None
    tokens_per_s: float | None
    peak_memory_gb: float | None
    elapsed_s: float | None


@dataclass(frozen=True)
class Overview:
    """A run with its metrics, and how it stands."""

    run: Run
    history: History
    figures: Figures
    state: str

    @classmethod
    def of(cls, run: Run) -> "Overview":
        """Read the metrics beside the record; raises AfsError where they cannot be opened."""
        history = read_history(run.path / METRICS)
        return cls(run, history, figures(run, history), state(run))


def all_runs(workspace: Workspace, expert: str = "") -> tuple[list[Run], list[AfsError]]:
    """The runs below adapters/, newest first, and why others could not be read."""
    runs: list[Run] = []
    failed: list[AfsError] = []
    for path in sorted(workspace.adapters.glob(f"{expert or '*'}/*/run.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            runs.append(Run.read(path.parent))
        except AfsError as error:
            failed.append(error)
    return sorted(runs, key=lambda run: (began(run), run.name), reverse=True), failed


def began(run: Run) -> str:
    """When the run was started or imported, as it was recorded."""
    return next((str(run.record[key]) for key in ("started_at", "made_at") if run.record.get(key)), "")


def label(run: Run) -> str:
    """`din@v2`; the home folder's name for a run that names no expert."""
    version = run.record.get("version")
    expert = run.expert or run.path.parent.name
    return f"{expert}@{version}" if isinstance(version, str) and version else expert


def find(workspace: Workspace, name: str) -> Run:
    """The run that a person means by a folder, `expert/name`, a name, or a part of one that fits no other.

    Raises UsageError where several fit, MissingError that lists near ones where none does.
    """
    for folder in (Path(name).expanduser(), workspace.adapters / name):
        if name and (folder / "run.json").is_file():
            return Run.read(folder.absolute())
    homes: dict[str, Path] = {
        f"{path.parent.parent.name}/{path.parent.name}": path.parent
        for path in sorted(workspace.adapters.glob("*/*/run.json"))
        if not path.parent.name.startswith(".")
    }
    tests: tuple[Callable[[str], bool], ...] = (
        lambda known: known.partition("/")[2] == name,
        lambda known: name != "" and name in known,
    )
    for test in tests:
        fitting = [known for known in homes if test(known)]
        if len(fitting) == 1:
            return Run.read(homes[fitting[0]])
        if fitting:
            shown = _some(sorted(fitting, reverse=True))
            raise UsageError(f"{name!r} may mean {len(fitting)} runs", str(workspace.adapters), f"name one: {shown}")
    raise MissingError(f"there is no run {name!r}", str(workspace.adapters), _near(name, list(homes)))


def state(run: Run) -> str:
    """The status, or `crashed` for a run that says it is running while its process on this host is gone."""
    process = run.record.get("process")
    if run.status != "running" or not isinstance(process, dict):
        return run.status
    pid, host = process.get("pid"), process.get("host")
    if isinstance(pid, bool) or not isinstance(pid, int) or not isinstance(host, str) or not _is_here(host):
        return run.status
    return run.status if _trains(pid) else "crashed"


def resume_command(run: Run) -> str:
    """What goes on with a crashed or interrupted run."""
    return f"afs-mlx train {shlex.quote(label(run))} --resume --out {shlex.quote(str(run.path))}"


def figures(run: Run, history: History) -> Figures:
    """The main figures; keys of run.json that are missing or of another type count as not known."""
    metrics = run.record.get("metrics")
    said: dict[str, Any] = metrics if isinstance(metrics, dict) else {}
    best, last = history.best, history.steps[-1] if history.steps else None
    rates = sorted(rate for step in history.steps if (rate := finite(step.tokens_per_s)) is not None)
    peaks = [peak for step in history.steps if (peak := finite(step.peak_memory_gb)) is not None]
    return Figures(
        steps=_whole(said.get("steps")) or history.last_step,
        total_steps=_whole(said.get("total_steps")) or _whole(run.record.get("total_steps")),
        base_valid_loss=_first(said.get("base_valid_loss"), history.base_loss),
        best_valid_loss=_first(said.get("best_valid_loss"), best.loss if best else None),
        best_step=_whole(said.get("best_step")) if "best_step" in said else best.step if best else None,
        tokens_per_s=rates[len(rates) // 2] if rates else None,
        peak_memory_gb=_first(said.get("peak_memory_gb"), max(peaks, default=None)),
        elapsed_s=_first(said.get("elapsed_s"), last.elapsed_s if last else None),
    )


def finite(value: object) -> float | None:
    """A number as it may be shown or drawn; None for everything else, infinities and NaN too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MOST else None


def _first(*values: object) -> float | None:
    return next((number for value in values if (number := finite(value)) is not None), None)


def _whole(value: object) -> int | None:
    number = finite(value)
    return int(number) if number is not None and number >= 0 else None


def _is_here(host: str) -> bool:
    """A Mac changes the end of its name with the network it is in."""
    return host.partition(".")[0].lower() == platform.node().partition(".")[0].lower()


def _trains(pid: int) -> bool:
    """Whether the process lives and is a Python or afs-mlx: after a restart another program may have its number."""
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, whose command line may be hidden
        return True
    command = _command(pid)
    return command is None or any(word in command.lower() for word in ("python", "afs"))


def _command(pid: int) -> str | None:
    """The process's command line, empty for a dead one that is still listed; None where that cannot be told."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        if Path("/proc/self").exists():
            return ""
    try:
        listing = ["/bin/ps", "-o", "command=", "-p", str(pid)]
        return subprocess.run(listing, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _near(name: str, known: list[str]) -> str:
    """The remedy: the near names, else the newest ones."""
    if not known:
        return "train one with afs-mlx train EXPERT, or name its folder"
    by_name = {full.partition("/")[2]: full for full in known} | {full: full for full in known}
    near = list(dict.fromkeys(by_name[match] for match in get_close_matches(name, list(by_name), n=6, cutoff=0.5)))
    return f"did you mean {_some(near)}?" if near else f"afs-mlx runs list shows them: {_some(sorted(known))}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
