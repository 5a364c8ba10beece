"""Runs for people: a table of all, and everything on one; and the same as plain data for --json."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import out, plain
from afs_mlx.cli.render.run_facts import age, changed_recipe, facts, going_on, loss_text, sample_blocks
from afs_mlx.cli.render.training_frame import spelt
from afs_mlx.runs.comparison import data_files
from afs_mlx.runs.overview import began, label
from afs_mlx.runs.resuming import checkpoint_names

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.runs.overview import Overview

STYLES = {"running": "cyan", "finished": "green", "imported": "green", "crashed": "red", "failed": "red"}


def show_list(runs: "Sequence[Overview]", workspace: "Workspace") -> None:
    """Newest first; two lines a run where the terminal is too narrow for a table."""
    if not runs:
        say(f"no runs in {workspace.shown(workspace.adapters)}")
        return
    headings = ("run", "expert", "base", "status", "steps", "valid loss: base → best", "begun")
    rows = [_row(overview) for overview in runs]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    if out().is_terminal and sum(widths) + 2 * len(widths) > out().width:
        for row in rows:
            say(row[0], style=f"bold {STYLES.get(row[3], '')}")
            say(f"  {'  '.join(filter(None, row[1:]))}")
    else:
        show_rows([headings, *rows])


def list_json(runs: "Sequence[Overview]") -> list[dict[str, Any]]:
    """One object a run."""
    return [summary_json(overview) for overview in runs]


def summary_json(overview: "Overview") -> dict[str, Any]:
    """What a run is and came to."""
    run = overview.run
    return {
        "run": str(run.path),
        "name": run.name,
        "expert": run.expert or run.path.parent.name,
        "version": str(run.record.get("version") or ""),
        "base": run.base,
        "demo": run.record.get("demo") is True,
        "status": overview.state,
        "started_at": began(run),
        **asdict(overview.figures),
    }


def show_run(overview: "Overview", workspace: "Workspace") -> None:
    """Everything a person asks afterwards; the answers to the samples last."""
    for name, text in facts(overview, workspace):
        lines = text.splitlines() or [""]
        for number, line in enumerate(lines):
            say(f"{'' if number else name:<13}{line}")
    for lines in sample_blocks(overview.history.samples_of_interest):
        say("")
        for line in lines:
            say(line)


def run_json(overview: "Overview") -> dict[str, Any]:
    """Everything, with the whole record and every sample; what is not finite is null."""
    history = overview.history
    return {
        **summary_json(overview),
        "resume": going_on(overview) or None,
        "changed_recipe": {key: {"value": v, "default": d} for key, v, d in changed_recipe(overview.run.record)},
        "data_files": data_files(overview.run.record),
        "checkpoints": checkpoint_names(overview.run),
        "validations": [asdict(validation) for validation in history.validations],
        "samples": [asdict(sample) for sample in history.samples],
        "rollbacks": [asdict(rollback) for rollback in history.rollbacks],
        "resumed_at": list(history.resumed_at),
        "stopped_early": history.stopped_early,
        "warnings": list(history.warnings),
        "unreadable_lines": list(history.unreadable),
        "torn_last_line": history.torn,
        "record": overview.run.record,
    }


def say(text: str, style: str = "") -> None:
    """One line on stdout, from wherever it comes: no controls, and what the terminal can show."""
    out().print(printable(text), style=style, markup=False)


def show_rows(rows: Iterable[Sequence[str]]) -> None:
    """A plain table with a bold first row, never cut."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        say(line, style="" if number else "bold")


def printable(text: str) -> str:
    """Text that stdout's encoding has, arrows spelt out where it has none."""
    return spelt(plain(text), out().encoding)


def strict(value: Any) -> Any:
    """A value that JSON has: null for what is not finite, whole characters only."""
    if isinstance(value, dict):
        return {strict(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(overview: "Overview") -> tuple[str, ...]:
    run, figures = overview.run, overview.figures
    losses = figures.base_valid_loss, figures.best_valid_loss
    step = f" @{figures.best_step}" if figures.best_step is not None else ""
    total = f"/{figures.total_steps}" if figures.total_steps else ""
    return (
        plain(run.name),
        plain(label(run)),
        plain(run.base),
        plain(overview.state),
        f"{figures.steps}{total}" if figures.steps or total else "",
        f"{' → '.join(map(loss_text, losses))}{step}" if any(loss is not None for loss in losses) else "",
        age(began(run)),
    )
