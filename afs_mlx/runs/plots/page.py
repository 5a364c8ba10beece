"""One HTML page of runs: inline SVG, no script, no request. Every text in it is untrusted and escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from afs_mlx.runs.history import Sample
from afs_mlx.runs.plots.curves import Point, RunCurves, extent, ticks

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 920, 64, 16, 12, 34
LETTERS = "ABCDEFGH"
# Okabe and Ito's colours, which colour-blind people tell apart, without black; readable on white and on near-black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8f6bd1", "#808080")
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6a7078; --line: #d9dce1; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #9aa0a8; --line: #3a3d42; --paper: #17181a; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: 1; } .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.valid { fill: none; stroke-width: 1.2; stroke-dasharray: 5 4; } .band { opacity: .16; stroke: none; }
.back { stroke-width: 1.5; stroke-dasharray: 2 3; }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } th { color: var(--soft); font-weight: normal; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.4 ui-monospace, monospace; }
.wide { overflow-x: auto; } .note { color: var(--soft); }
"""


@dataclass(frozen=True)
class PageRun:
    """A run on the page: its curves, a table of facts (name, text), what was answered, and remarks."""

    curves: RunCurves
    facts: Sequence[tuple[str, str]]
    samples: Sequence[Sample] = ()


def page(title: str, runs: Sequence[PageRun], differences: Sequence[tuple[str, ...]], remarks: Sequence[str]) -> str:
    """The whole document. `differences` are rows: a key, then each run's value."""
    curves = [run.curves for run in runs]
    names = [f"{LETTERS[i]}: {run.name}" if len(runs) > 1 else run.name for i, run in enumerate(curves)]
    speed = [(run.speed, i) for i, run in enumerate(curves)]
    rate = [(run.rate, i) for i, run in enumerate(curves)]
    parts = [
        f"<h1>{_text(title)}</h1>",
        _legend(names),
        "<h2>Loss</h2>",
        _losses(curves),
        f'<p class="note">{_text(_how_drawn(curves))}</p>',
        *(f"<p>{_text(remark)}</p>" for remark in remarks),
        *(_section("Learning rate", rate) if any(points for points, _ in rate) else ()),
        *(_section("Tokens per second", speed) if any(points for points, _ in speed) else ()),
        *(["<h2>What differs</h2>", _table([("", *names), *differences])] if differences else ()),
    ]
    for name, run in zip(names, runs, strict=True):
        parts += [f"<h2>{_text(name)}</h2>", _table(run.facts), *_samples(run.samples)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


class _Axes:
    """Where a value stands in the picture."""

    def __init__(self, points: Sequence[Point], height: int) -> None:
        self.height = height
        self.first = min((x for x, _ in points), default=0.0)
        self.last = max(max((x for x, _ in points), default=1.0), self.first + 1)
        self.low, self.high = extent(y for _, y in points)

    def x(self, step: float) -> str:
        return f"{LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT):.1f}"

    def y(self, value: float) -> str:
        share = (self.high - value) / (self.high - self.low)
        return f"{TOP + min(1.0, max(0.0, share)) * (self.height - TOP - BOTTOM):.1f}"

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    def grid(self) -> list[str]:
        """Lines and numbers of both axes."""
        floor, parts = self.height - BOTTOM, []
        for value in ticks(self.low, self.high, 6):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">{value:.4g}</text>')
        for step in ticks(self.first, self.last, 9):
            x = self.x(step)
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 5}"/>')
            parts.append(f'<text x="{x}" y="{floor + 20}" text-anchor="middle">{step:.6g}</text>')
        return parts


def _losses(runs: Sequence[RunCurves]) -> str:
    axes = _Axes([point for run in runs for point in (*run.train, *run.valid)], 440)
    parts = axes.grid()
    for number, run in enumerate(runs):
        colour = COLOURS[number]
        if run.band:
            upper = [(x, high) for x, _, high in run.band]
            lower = [(x, low) for x, low, _ in reversed(run.band)]
            parts.append(f'<polygon class="band" fill="{colour}" points="{axes.path([*upper, *lower])}"/>')
        for step in run.rolled_back:
            at, title = axes.x(min(step, axes.last)), f"<title>step {step} was rolled back</title>"
            ends = f'x1="{at}" x2="{at}" y1="{TOP}" y2="{axes.height - BOTTOM}"'
            parts.append(f'<line class="back" stroke="{colour}" {ends}>{title}</line>')
    for number, run in enumerate(runs):
        colour = COLOURS[number]
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{axes.path(run.train)}"/>')
        parts.append(f'<polyline class="valid" stroke="{colour}" points="{axes.path(run.valid)}"/>')
        best = min(run.valid, key=lambda point: point[1], default=None)
        for x, y in run.valid:
            title = f"<title>step {x:.0f}: validation loss {y:.4f}{' (best)' if (x, y) == best else ''}</title>"
            size = 6 if (x, y) == best else 4
            parts.append(f'<circle cx="{axes.x(x)}" cy="{axes.y(y)}" r="{size}" fill="{colour}">{title}</circle>')
    return _svg("Loss over steps", parts, axes.height)


def _section(name: str, lines: Sequence[tuple[Sequence[Point], int]]) -> list[str]:
    axes = _Axes([point for points, _ in lines for point in points], 180)
    curves = [
        f'<polyline class="curve" stroke="{COLOURS[number]}" points="{axes.path(points)}"/>' for points, number in lines
    ]
    return [f"<h2>{_text(name)}</h2>", _svg(f"{name} over steps", [*axes.grid(), *curves], axes.height)]


def _svg(name: str, parts: Sequence[str], height: int) -> str:
    head = f'<svg role="img" aria-label="{_text(name)}" viewBox="0 0 {WIDTH} {height}">'
    return "\n".join([head, *parts, "</svg>"])


def _how_drawn(runs: Sequence[RunCurves]) -> str:
    """What the lines are, and what is not in them."""
    windows = sorted({run.window for run in runs if run.train})
    over = " or ".join(str(window) for window in windows)
    gaps = sum(run.gaps for run in runs)
    parts = [
        f"Solid: training loss, the mean over {over} steps around each; shaded: the lowest and highest nearby."
        if over
        else "",
        "Dashed with points: validation loss; the largest point is the best.",
        "Dotted upright: a step that was rolled back." if any(run.rolled_back for run in runs) else "",
        f"{gaps} losses are not finite and are not drawn." if gaps else "",
    ]
    return " ".join(filter(None, parts))


def _legend(names: Sequence[str]) -> str:
    rows = (f'<li style="color: {COLOURS[i]}"><b>{_text(name)}</b></li>' for i, name in enumerate(names))
    return f"<ul>{''.join(rows)}</ul>"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    cells = (f"<tr><th>{_text(row[0])}</th>{''.join(f'<td>{_text(c)}</td>' for c in row[1:])}</tr>" for row in rows)
    return f'<div class="wide"><table>{"".join(cells)}</table></div>'


def _samples(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return []
    rows = (
        f"<tr><th>step {s.step}</th>{''.join(f'<td><pre>{_text(t)}</pre></td>' for t in (s.question, s.answer))}"
        f"<td><pre>{_text(s.expected)}</pre></td></tr>"
        for s in samples
    )
    head = "<tr><th></th><th>question</th><th>answer</th><th>expected</th></tr>"
    return [f'<div class="wide"><table>{head}{"".join(rows)}</table></div>']


def _text(text: str) -> str:
    """Escaped, without controls, halves of characters and marks that turn the reading order."""
    return escape("".join(c for c in text if c in "\n\t" or c.isprintable()))
