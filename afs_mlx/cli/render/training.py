"""The live view of a training: a frame of a few lines in a terminal, plain lines elsewhere. Draws only on events.

What has to stay (plan, validations, trouble) is printed in both, above the frame, so that the scrollback keeps it.
"""

import math
import sys
import time
from typing import TYPE_CHECKING

from afs_mlx.cli.render.console import err, notice, plain, size
from afs_mlx.cli.render.training_frame import TrainingFrame, loss, one_line, spelt, time_text
from afs_mlx.engine.training.events import (
    Planned,
    Prepared,
    Resumed,
    RolledBack,
    Sampled,
    Saved,
    Stepped,
    StoppedEarly,
    TrainingEvent,
    Validated,
    Warned,
)
from afs_mlx.runs.plots.curves import sparkline

if TYPE_CHECKING:
    from rich.live import Live

PLAIN_EVERY_S = 15.0
REDRAW_EVERY_S = 0.25
MOST_PLAIN = 100


class TrainingView:
    """Shows a training; call it with each event. `title` says what is trained: `din@v2 on smollm2-135m (demo)`.

    A terminal that goes away ends the view, not the training.
    """

    def __init__(self, title: str = "") -> None:
        self.frame = TrainingFrame(title=plain(title))
        self._live: Live | None = None
        self._gone = False
        self._drawn_s = self._printed_s = self._prepared_s = 0.0

    def __enter__(self) -> "TrainingView":
        if err().is_interactive:
            from rich.live import Live

            self._live = Live(
                self.frame,
                console=err(),
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # an answer in a pipe is none of the frame's business
                vertical_overflow="crop",
            )
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is None:
            return
        try:
            self._live.stop()
            self._leave_curve()
        except (OSError, SystemExit):
            self._gone = True

    def __call__(self, event: TrainingEvent) -> None:
        if self._gone:
            return
        try:
            self._take(event)
            self._draw(soon=isinstance(event, Sampled))
        except (OSError, SystemExit):  # rich raises SystemExit when the reader of a pipe left
            self._gone = True

    def _take(self, event: TrainingEvent) -> None:
        match event:
            case Planned():
                self._plan(event)
            case Prepared():
                self._prepare(event)
            case Resumed():
                self.frame.total_steps, self._printed_s = event.total_steps, event.elapsed_s
                if math.isfinite(event.best_loss):
                    self.frame.best = event.best_loss, event.best_step
                self._say(f"resumed after step {event.step}, {time_text(event.elapsed_s)} of training are behind it")
            case Stepped():
                self._step(event)
            case Validated():
                self._validate(event)
            case Sampled():
                self._sample(event)
            case Saved():
                self.frame.saved_step = event.step
            case RolledBack():
                reason, factor = plain(event.reason), f"{event.rate_factor:g}"
                self._warn(f"step {event.failed_step}: {reason}; going on after step {event.step}, rate × {factor}")
            case StoppedEarly():
                self._say(f"step {event.step:>4}  stopped early: nothing better in {event.validations} validations")
            case Warned():
                self._warn(plain(event.text))

    def _plan(self, event: Planned) -> None:
        self.frame.total_steps = event.total_steps
        self.frame.phase = "first validation …"
        cut = f", {event.dropped_rows} dropped as too long" if event.dropped_rows else ""
        cut += f", {event.truncated_rows} shortened" if event.truncated_rows else ""
        shared = f"; {event.shared_tokens} tokens are the same in each row" if event.shared_tokens else ""
        self._say(f"{event.train_rows} rows to train, {event.valid_rows} to validate{cut}")
        self._say(f"{event.supervised_tokens} of {event.train_tokens} tokens are learnt{shared}")
        self._say(
            f"{event.trainable_parameters / 1e6:.2f} M parameters, {event.total_steps} steps, "
            f"{event.padding_share:.1%} padding"
        )

    def _prepare(self, event: Prepared) -> None:
        self.frame.phase = f"frozen blocks: {event.done}/{event.total} rows"
        if event.done >= event.total:
            self.frame.phase = "first validation …"
            where = "on disk" if event.on_disk else "in memory"
            found = ", found from an earlier run" if event.reused else ""
            self._say(f"frozen blocks: the outputs of {event.total} rows kept {where}, {size(event.kept_bytes)}{found}")
        elif self._live is None and time.monotonic() - self._prepared_s >= PLAIN_EVERY_S:
            if self._prepared_s:
                self._say(self.frame.phase)
            self._prepared_s = time.monotonic()

    def _step(self, event: Stepped) -> None:
        self.frame.step, self.frame.total_steps = event, event.total_steps
        self.frame.train.append(event.loss)
        # A rollback may set the clock back.
        if self._live is None and not 0 <= event.elapsed_s - self._printed_s < PLAIN_EVERY_S:
            self._printed_s = event.elapsed_s
            self._say(
                f"step {event.step:>4}/{event.total_steps}  loss {loss(event.loss)}  {event.tokens_per_s:.0f} tok/s  "
                f"{size(event.peak_memory_gb * 1e9)}  ETA {time_text(event.eta_s)}  epoch {event.epoch}"
            )

    def _validate(self, event: Validated) -> None:
        frame = self.frame
        frame.before, frame.valid_loss = frame.valid_loss, event.loss
        frame.valid.append(event.loss)
        if event.best:
            frame.best = event.loss, event.step
        frame.phase = "first steps …"
        mark = "  best so far" if event.best and event.step else "  the base" if not event.step else ""
        self._say(f"step {event.step:>4}  valid loss {loss(event.loss)}{mark}")

    def _sample(self, event: Sampled) -> None:
        self.frame.sample = event
        if self._live is None:
            named = (("asked", event.question), ("answers", event.answer), ("expected", event.expected))
            for name, text in named:
                shown = one_line(text)
                self._say(f"  {name:<9}{shown if len(shown) <= MOST_PLAIN else shown[: MOST_PLAIN - 1] + '…'}")

    def _warn(self, text: str) -> None:
        notice(spelt(text, err().encoding))

    def _say(self, text: str) -> None:
        err().print(spelt(f"  {text}", err().encoding), markup=False)

    def _draw(self, soon: bool) -> None:
        """At most four times a second, so that steps of a millisecond cost nothing."""
        now = time.monotonic()
        if self._live is not None and (soon or now - self._drawn_s >= REDRAW_EVERY_S):
            self._drawn_s = now
            self._live.refresh()

    def _leave_curve(self) -> None:
        """What the frame drew, for the scrollback."""
        values = self.frame.train.values
        if self.frame.step is not None and len(values) > 1:
            spark = sparkline(values, 40, ascii_only=not err().encoding.startswith("utf"))
            self._say(f"train loss {spark} {loss(self.frame.step.loss)}")
