"""What a person asks of a run, as names and texts: for the terminal and for the HTML page."""

import contextlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import duration, out, size
from afs_mlx.core.files import folder_size_bytes
from afs_mlx.runs.comparison import TRAILING_STEPS, data_files, flat, table
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.runs.overview import began, finite, label, resume_command
from afs_mlx.runs.plots.curves import mean, sparkline
from afs_mlx.runs.resuming import CHECKPOINTS, UNFINISHED, checkpoint_names

if TYPE_CHECKING:
    from pathlib import Path

    from afs_mlx.core.paths import Workspace
    from afs_mlx.runs.history import Sample
    from afs_mlx.runs.overview import Overview

MOST_SAMPLE_LINES = 6
MOST_EVENTS = 10


def facts(overview: "Overview", workspace: "Workspace") -> list[tuple[str, str]]:
    """Name and text, in the order of a person's questions; a text may have several lines."""
    run, record = overview.run, overview.run.record
    base = table(record, "base")
    weights = f", weights {str(base['weights_sha256'])[:12]}" if base.get("weights_sha256") else ""
    demo = " (demo)" if record.get("demo") is True else ""
    rows = [
        ("run", workspace.shown(run.path)),
        ("expert", f"{label(run)} on {run.base or 'a base that is not recorded'}{demo}{weights}"),
        ("status", _status(overview)),
        ("begun", f"{began(run) or 'not recorded'}{f' ({age(began(run))})' if age(began(run)) else ''}"),
        *_outcome(overview),
        ("recipe", "\n".join(_recipe_line(*row) for row in changed_recipe(record)) or _defaults(record)),
        ("system text", _short(str(record["system"]), 100) if record.get("system") else ""),
        ("data", _data(record)),
        ("checkpoints", _checkpoints(run)),
        ("adapter", size((run.path / WEIGHTS).stat().st_size) if (run.path / WEIGHTS).is_file() else "none"),
        ("happened", "\n".join(_happened(overview))),
        ("code", _code(record)),
        ("packages", ", ".join(f"{k} {v}" for k, v in flat(table(record, "packages"), "").items() if v)),
        ("machine", ", ".join(str(v) for k, v in table(record, "machine").items() if k in ("system", "processor"))),
    ]
    return [(name, text) for name, text in rows if text]


def sample_blocks(samples: "Sequence[Sample]") -> list[list[str]]:
    """For each question its answers over time and what was expected."""
    blocks: dict[str, list[Sample]] = {}
    for sample in samples:
        blocks.setdefault(sample.question, []).append(sample)
    found = []
    for question, answers in blocks.items():
        lines = [*_block("question", question)]
        for sample in answers:
            lines += _block(f"step {sample.step}" if sample.step else "base", sample.answer)
        found.append([*lines, *_block("expected", answers[-1].expected)])
    return found


def changed_recipe(record: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key, value and default of what is not as it is by default today; None for a key that today's recipe lacks."""
    from afs_mlx.schema.recipe import Recipe

    defaults = flat(Recipe().model_dump(mode="json"), "")
    recipe = flat(table(record, "recipe"), "")
    return [(key, value, defaults.get(key)) for key, value in recipe.items() if value != defaults.get(key)]


def going_on(overview: "Overview") -> str:
    """The command that goes on with an unfinished run; empty where there is nothing to go on with."""
    unfinished = overview.state in UNFINISHED and checkpoint_names(overview.run)
    return resume_command(overview.run) if unfinished else ""


def age(stamp: str) -> str:
    """`3 h ago`; empty for what is no time."""
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return ""
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = (datetime.now(UTC) - then).total_seconds()
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length or (unit != "days" and seconds >= length):
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def loss_text(value: float | None) -> str:
    """Four significant digits would hide what a late validation brings, so four decimals."""
    return "–" if value is None else f"{value:.4f}"


def _status(overview: "Overview") -> str:
    figures, state = overview.figures, overview.state
    total = f" of {figures.total_steps}" if figures.total_steps else ""
    text = f"{state}, step {figures.steps}{total}" if figures.steps else state
    process = table(overview.run.record, "process")
    if state == "crashed":
        text += f"; its process {process.get('pid')} is gone"
    elif state == "running" and process:
        text += f"; process {process.get('pid')} on {process.get('host')}"
    if command := going_on(overview):
        text += f"\nto go on: {command}"
    if isinstance(error := overview.run.record.get("error"), str) and state == "failed":
        text += f"\n{error}"
    return text


def _outcome(overview: "Overview") -> list[tuple[str, str]]:
    figures, history = overview.figures, overview.history
    valid = f"{loss_text(figures.base_valid_loss)} (base) → {loss_text(figures.best_valid_loss)}"
    if figures.best_step is not None:
        valid += f" (best, step {figures.best_step})"
    if history.validations:
        last = history.validations[-1]
        valid += f", {loss_text(finite(last.loss))} (last, step {last.step})"
    losses = [step.loss for step in history.steps if math.isfinite(step.loss)]
    train = ""
    if losses:
        number = min(TRAILING_STEPS, max(1, len(losses) // 2))
        ends = mean(losses[:number]), mean(losses[-number:])
        spark = sparkline(losses, 24, ascii_only=not out().encoding.startswith("utf"))
        train = f"{ends[0]:.4f} → {ends[1]:.4f} (mean of the first and the last {number})  {spark}"
    tokens = sum(t for step in history.steps if (t := finite(step.supervised_tokens)) is not None)
    speed = [
        f"{figures.tokens_per_s:.0f} tok/s (median)" if figures.tokens_per_s else "",
        f"{tokens:,.0f} tokens learnt" if tokens else "",
        f"peak {size(figures.peak_memory_gb * 1e9)}" if figures.peak_memory_gb else "",
        f"took {duration(figures.elapsed_s)}" if figures.elapsed_s else "",
    ]
    known = figures.best_valid_loss is not None or bool(history.validations)
    return [("valid loss", valid if known else ""), ("train loss", train), ("speed", ", ".join(filter(None, speed)))]


def _recipe_line(key: str, value: Any, default: Any) -> str:
    return f"{key} {_value(value)} (default {_value(default)})" if default is not None else f"{key} {_value(value)}"


def _defaults(record: dict[str, Any]) -> str:
    return "all by default" if table(record, "recipe") else ""


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _data(record: dict[str, Any]) -> str:
    data = table(record, "data")
    lines = [
        f"{entry['file']}{f', {entry["rows"]} rows' if 'rows' in entry else ''}, sha256 {entry.get('sha256')}"
        for entry in data_files(record)
    ]
    if "train_rows" in data:
        lines.append(f"{data.get('train_rows')} rows trained, {data.get('valid_rows')} to validate")
    return "\n".join(lines)


def _happened(overview: "Overview") -> list[str]:
    """Rollbacks, resumes, warnings, and what is wrong with the file."""
    history = overview.history
    lines = [
        f"step {r.failed_step} was rolled back to step {r.step}: {r.reason}"
        + ("" if math.isnan(r.rate_factor) else f"; rate × {r.rate_factor:g}")
        for r in history.rollbacks
    ]
    lines += [f"resumed after step {step}" for step in history.resumed_at]
    lines += [f"warned: {text}" for text in history.warnings]
    if len(lines) > MOST_EVENTS:
        lines = [*lines[:MOST_EVENTS], f"… and {len(lines) - MOST_EVENTS} more (--json has all)"]
    if history.stopped_early is not None:
        lines.append(f"stopped early at step {history.stopped_early}")
    losses = [step.loss for step in history.steps] + [validation.loss for validation in history.validations]
    gaps = sum(not math.isfinite(loss) for loss in losses)
    if gaps:
        lines.append(f"{gaps} losses are not finite")
    if history.unreadable:
        first = history.unreadable[0]
        lines.append(f"metrics.jsonl: {len(history.unreadable)} lines cannot be read, the first is line {first}")
    if history.torn and overview.state != "running":
        lines.append("metrics.jsonl: the last line is half; it was left out")
    return lines


def _code(record: dict[str, Any]) -> str:
    code = table(record, "code")
    dirty = " with local changes" if code.get("dirty") else ""
    made_by = str(record.get("made_by") or "")
    return ", ".join(filter(None, (made_by, f"{str(code['commit'])[:12]}{dirty}" if code.get("commit") else "")))


def _block(name: str, text: str) -> list[str]:
    lines = text.strip().splitlines() or ["(nothing)"]
    more = [f"… {len(lines) - MOST_SAMPLE_LINES} more lines"] if len(lines) > MOST_SAMPLE_LINES else []
    shown = [*(_short(line, 160) for line in lines[:MOST_SAMPLE_LINES]), *more]
    return [f"{'' if number else name:<13}{line}" for number, line in enumerate(shown)]


def _short(text: str, most: int) -> str:
    text = text.replace("\n", " ").replace("\t", "  ")
    return text if len(text) <= most else text[: most - 1] + "…"


def _checkpoints(run: Run) -> str:
    sizes = ((name, _bytes(run.path / CHECKPOINTS / name)) for name in checkpoint_names(run))
    return ", ".join(f"{name} ({size(size_bytes)})" for name, size_bytes in sizes)


def _bytes(path: "Path") -> int:
    """0 for a checkpoint that the trainer removes at this moment."""
    with contextlib.suppress(OSError):
        return folder_size_bytes(path) if path.is_dir() else path.stat().st_size
    return 0
