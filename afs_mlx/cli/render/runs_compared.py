"""Several runs for people: compared in a table and words, drawn in the terminal, put on one HTML page."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import duration, out, plain, size
from afs_mlx.cli.render.run_facts import facts, loss_text
from afs_mlx.cli.render.runs import printable, say, show_rows, summary_json
from afs_mlx.runs.comparison import compare, letter
from afs_mlx.runs.overview import label
from afs_mlx.runs.plots.chart import NO_RUN, chart
from afs_mlx.runs.plots.curves import curves_of
from afs_mlx.runs.plots.page import PageRun, page

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.runs.comparison import Comparison
    from afs_mlx.runs.overview import Overview
    from afs_mlx.runs.plots.curves import RunCurves

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red", "bright_cyan", "bright_yellow")
MOST_LINES = 24
PLAIN_WIDTH = 100


def show_comparison(found: "Comparison") -> None:
    """The verdict first, then figures, what was set otherwise, and losses at equal steps."""
    for number, overview in enumerate(found.runs):
        say(f"{letter(number)}  {label(overview.run)}  {overview.run.name}", style="bold")
    say("")
    for line in found.verdict or ("nothing can be said: there are no figures",):
        say(f"- {line}")
    for line in found.caveats:
        say(f"- but: {line}")
    say("")
    heads = [letter(number) for number in range(len(found.runs))]
    show_rows([["", *heads], *_figures(found)])
    say("")
    if found.settings:
        rows = [[key, *(_cell(value) for value in values)] for key, values in found.settings.items()]
        show_rows([["what differs", *heads], *rows])
    else:
        say("what is recorded of settings, data, code and machine is the same")
    if found.at_steps:
        say("")
        show_rows([["at step", *(f"{h} {kind}" for h in heads for kind in ("train", "valid"))], *_at_steps(found)])


def comparison_json(found: "Comparison") -> dict[str, Any]:
    """The same as data."""
    return {
        "runs": [{"letter": letter(n), **summary_json(overview)} for n, overview in enumerate(found.runs)],
        "losses_comparable": found.comparable,
        "obstacles": list(found.obstacles),
        "caveats": list(found.caveats),
        "verdict": list(found.verdict),
        "settings": {key: list(values) for key, values in found.settings.items()},
        "at_steps": [asdict(row) for row in found.at_steps],
    }


def show_plot(runs: "Sequence[Overview]") -> None:
    """A chart as wide as the terminal, and what is what."""
    console = out()
    utf8, colours = console.encoding.startswith("utf"), bool(console.color_system) and not console.no_color
    width = console.width if console.is_terminal else PLAIN_WIDTH
    height = min(MOST_LINES, console.height - len(runs) - 4) if console.is_terminal else MOST_LINES - 4
    curves = [_curves(overview) for overview in runs]
    # Dots of several runs can be told apart by their colour alone.
    braille = utf8 and (colours or len(runs) == 1)
    from rich.text import Text

    for row in chart(curves, width, height, braille, ascii_only=not utf8):
        parts = [(span.text, "dim" if span.run == NO_RUN else COLOURS[span.run]) for span in row]
        console.print(Text.assemble(*parts))
    for number, overview in enumerate(runs):
        say(_legend(overview, curves[number], number if len(runs) > 1 else NO_RUN), COLOURS[number])
    say(f"line: training loss, smoothed; {'letters' if len(runs) > 1 else 'points'}: validation loss")
    if len(runs) > 1 and (obstacles := compare(runs).obstacles):
        say(f"losses are not comparable: {'; '.join(obstacles)}")


def plot_json(runs: "Sequence[Overview]") -> dict[str, Any]:
    """Every step's training loss and every validation."""
    return {
        "runs": [
            {
                **summary_json(overview),
                "train": [[step.step, step.loss] for step in overview.history.steps],
                "valid": [[validation.step, validation.loss] for validation in overview.history.validations],
            }
            for overview in runs
        ]
    }


def html_page(runs: "Sequence[Overview]", workspace: "Workspace") -> str:
    """The page's text."""
    pages = [PageRun(_curves(o), facts(o, workspace), o.history.samples_of_interest) for o in runs]
    title = " and ".join(dict.fromkeys(label(overview.run) for overview in runs)) + ": training runs"
    if len(runs) == 1:
        return page(title, pages, [], [])
    found = compare(runs)
    rows = [(key, *(_cell(value) for value in values)) for key, values in found.settings.items()]
    return page(title, pages, rows, [*found.verdict, *found.caveats])


def _curves(overview: "Overview") -> "RunCurves":
    return curves_of(overview.run.name, overview.history)


def _legend(overview: "Overview", curves: "RunCurves", number: int) -> str:
    figures = overview.figures
    name = f"{letter(number)}  {overview.run.name}" if number != NO_RUN else overview.run.name
    best = f": best {loss_text(figures.best_valid_loss)}" if figures.best_valid_loss is not None else ""
    step = f" at step {figures.best_step}" if best and figures.best_step is not None else ""
    gaps = f"; {curves.gaps} losses are not finite and not drawn" if curves.gaps else ""
    return f"{name} ({overview.state}){best}{step}{gaps}"


def _figures(found: "Comparison") -> list[list[str]]:
    def row(name: str, texts: list[str]) -> list[str]:
        return [name, *texts]

    all_figures = [overview.figures for overview in found.runs]
    return [
        row("status", [overview.state for overview in found.runs]),
        row("steps", [f"{f.steps}{f'/{f.total_steps}' if f.total_steps else ''}" for f in all_figures]),
        row("valid loss, base", [loss_text(f.base_valid_loss) for f in all_figures]),
        row("valid loss, best", [loss_text(f.best_valid_loss) for f in all_figures]),
        row("best step", ["–" if f.best_step is None else str(f.best_step) for f in all_figures]),
        row("tok/s, median", ["–" if f.tokens_per_s is None else f"{f.tokens_per_s:.0f}" for f in all_figures]),
        row("peak memory", ["–" if f.peak_memory_gb is None else size(f.peak_memory_gb * 1e9) for f in all_figures]),
        row("time", ["–" if f.elapsed_s is None else duration(f.elapsed_s) for f in all_figures]),
    ]


def _at_steps(found: "Comparison") -> list[list[str]]:
    return [
        [str(at.step), *(loss_text(v) for pair in zip(at.train, at.valid, strict=True) for v in pair)]
        for at in found.at_steps
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "not recorded"
    text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
    text = " ".join(plain(text).split())
    return printable(text if len(text) <= 60 else text[:59] + "…")
