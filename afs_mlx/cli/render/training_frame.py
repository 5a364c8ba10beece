"""What a training looks like in a few lines of any terminal: wide or narrow, high or low, with or without UTF-8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from afs_mlx.cli.render.console import duration, plain, size
from afs_mlx.runs.plots.curves import Curve, smoothed, sparkline

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

    from afs_mlx.engine.training.events import Sampled, Stepped

MOST_BAR = 40
LEAST_BAR = 5
FEW = 20  # values, that are drawn as they are
WIDE = 50  # columns from which words are written out
SPELT = str.maketrans(
    {"→": "->", "·": "-", "…": ".", "×": "x", "–": "-", "↓": "v", "↑": "^", "⏎": "/", "●": "o", "━": "=", "─": "-"}
)

type Part = tuple[str, str]  # text and style


@dataclass
class TrainingFrame:
    """The state of a training as far as it is shown; rendered anew for the size that the terminal has now."""

    title: str = ""
    phase: str = "starting …"
    total_steps: int = 0
    step: "Stepped | None" = None
    sample: "Sampled | None" = None
    saved_step: int | None = None
    valid_loss: float | None = None
    before: float | None = None
    best: tuple[float, int] | None = None
    train: Curve = field(default_factory=Curve)
    valid: Curve = field(default_factory=Curve)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        # One column and one line stay free, so that no terminal wraps or scrolls what is to be drawn over.
        yield from self.lines(max(1, options.max_width - 1), console.height - 1, console.encoding)

    def lines(self, width: int, height: int, encoding: str = "utf-8") -> "list[Text]":
        """At most `height` lines (at least one) of at most `width` cells, the more important ones where few fit."""
        pen = _Pen(width, encoding)
        ranked = [
            (6, [(self.title, "bold")] if self.title else []),
            (1, self._progress(pen)),
            (2, self._train(pen)),
            (3, self._valid(pen)),
            (5, self._figures(pen)),
            (4, self._times(pen)),
            *self._sample(pen),
        ]
        present = [(rank, parts) for rank, parts in ranked if parts]
        kept = sorted(rank for rank, _ in present)[: max(1, height)]
        return [pen.line(parts) for rank, parts in present if rank in kept]

    def _progress(self, pen: "_Pen") -> list[Part]:
        if self.step is None or not self.total_steps:
            return [(self.phase, "")]
        done = min(1.0, self.step.step / self.total_steps)
        text = f"{self.step.step}/{self.total_steps} {done:.0%}"
        epoch = f"  epoch {self.step.epoch}"
        if pen.wide:
            text += epoch
        room = min(MOST_BAR, pen.width - len(text) - 2)
        if room < LEAST_BAR:
            return [(text, "")]
        full, rest = ("#", "-") if pen.ascii_only else ("━", "─")
        filled = int(room * done)
        return [(full * filled, "cyan"), (rest * (room - filled), "dim"), (f"  {text}", "")]

    def _train(self, pen: "_Pen") -> list[Part]:
        if self.step is None:
            return []
        return pen.curve([("train loss " if pen.wide else "train ", "dim"), (loss(self.step.loss), "")], self.train)

    def _valid(self, pen: "_Pen") -> list[Part]:
        if self.valid_loss is None:
            return []
        trend = ""
        if self.before is not None and self.valid_loss != self.before:
            trend = " ↓" if self.valid_loss < self.before else " ↑"
        parts = [("valid loss " if pen.wide else "valid ", "dim"), (f"{loss(self.valid_loss)}{trend}", "")]
        if self.best and pen.width >= 30:
            parts.append((f"  best {loss(self.best[0])} @{self.best[1]}", "green"))
        return pen.curve(parts, self.valid)

    def _figures(self, pen: "_Pen") -> list[Part]:
        if self.step is None:
            return []
        texts = [f"{self.step.tokens_per_s:.0f} tok/s", size(self.step.peak_memory_gb * 1e9)]
        texts += [f"rate {self.step.learning_rate:.1e}", f"norm {self.step.grad_norm:.2g}"]
        return pen.fit(texts)

    def _times(self, pen: "_Pen") -> list[Part]:
        if self.step is None:
            return []
        texts = [f"ETA {time_text(self.step.eta_s)}", f"{time_text(self.step.elapsed_s)} so far"]
        if self.saved_step is not None:
            texts.append(f"saved @{self.saved_step}")
        return pen.fit(texts)

    def _sample(self, pen: "_Pen") -> list[tuple[int, list[Part]]]:
        if self.sample is None:
            return []
        texts = self.sample.question, self.sample.answer, self.sample.expected
        names = ("asked    ", "answers  ", "expected ") if pen.wide else ("Q ", "A ", "= ")
        return [
            (rank, [(name, "dim"), (one_line(text), style)])
            for rank, name, text, style in zip((8, 7, 9), names, texts, ("dim", "", "dim"), strict=True)
        ]


class _Pen:
    """Fits text into a line of `width` cells."""

    def __init__(self, width: int, encoding: str) -> None:
        self.width, self._encoding = width, encoding
        self.ascii_only = not encoding.startswith("utf")
        self.wide = width >= WIDE

    def line(self, parts: Sequence[Part]) -> "Text":
        """The parts one after another, cut at the end of the line."""
        from rich.cells import cell_len, set_cell_size
        from rich.text import Text

        text, room = Text(no_wrap=True, end="\n"), self.width
        for words, style in parts:
            shown = self._shown(words)
            if cell_len(shown) > room:
                shown = set_cell_size(shown, max(0, room - 1)).rstrip() + self._shown("…")
                text.append(shown if room > 0 else "", style)
                break
            room -= cell_len(shown)
            text.append(shown, style)
        return text

    def fit(self, texts: Sequence[str]) -> list[Part]:
        """As many texts as fit, the first one in any case."""
        line = texts[0]
        for text in texts[1:]:
            if len(line) + 3 + len(text) > self.width:
                break
            line += f" · {text}"
        return [(line, "dim")]

    def curve(self, parts: list[Part], curve: Curve) -> list[Part]:
        """The parts, then the curve in what is left of the line, where that is more than a few characters."""
        room = self.width - sum(len(text) for text, _ in parts) - 2
        values = curve.values
        if room < 3 or len(values) < 2:
            return parts
        if len(values) > FEW:
            values = smoothed(values, len(values) // FEW)
        return [*parts, ("  ", ""), (sparkline(values, room, self.ascii_only), "cyan")]

    def _shown(self, text: str) -> str:
        return spelt(text, self._encoding)


def spelt(text: str, encoding: str) -> str:
    """Text that the encoding has: a sign that it lacks becomes one of ASCII, a letter a question mark."""
    return text if encoding.startswith("utf") else text.translate(SPELT).encode(encoding, "replace").decode(encoding)


def loss(value: float) -> str:
    """`1.234`; `1.2e+06` for what went astray, `nan` for what is no number."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.2g}"


def time_text(seconds: float) -> str:
    """A duration, `…` where it is not known."""
    return duration(seconds) if math.isfinite(seconds) and seconds >= 0 else "…"


def one_line(text: str) -> str:
    """Untrusted text without controls and marks that change its width, line breaks shown as a sign."""
    lines = [" ".join(line.split()) for line in plain(text).replace("\t", " ").split("\n")]
    return " ⏎ ".join(filter(None, lines)).translate({0xFE0E: None, 0xFE0F: None})
