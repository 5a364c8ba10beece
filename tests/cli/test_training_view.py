"""The live view in terminals of any size and tongue, and the plain lines where there is none."""

import io
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from afs_mlx.cli.render import training
from afs_mlx.cli.render.training import TrainingView
from afs_mlx.cli.render.training_frame import TrainingFrame, loss, one_line, time_text
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

ROOT = Path(__file__).parents[2]
EVIL = "\x1b[2J\x1b]0;x\x07\u202e[bold]\ud800"
PLANNED = Planned(40, 9, 3, 2, 1, 900, 300, 60, 1_200_000, 0.125)
STEP = Stepped(20, 40, 2, 1.25, 8.3e-5, 0.8, 30, 412.4, 1.93, 100.0, 365.0)
SAMPLE = Sampled(20, f"Optimise:\n```asm\nlda #0 {EVIL}```", "日本語 stz $10 " + "x" * 300, "stz $10")

type Terminal = Callable[..., io.StringIO]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the view sees."""
    now = [1000.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Terminal:
    """Makes stderr a terminal (or a pipe) of some size; returns what is written to it."""

    def make(
        width: int = 80, height: int = 24, live: bool = True, encoding: str = "utf-8", **more: object
    ) -> io.StringIO:
        written = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
        made = Console(
            file=written,
            force_terminal=live,
            width=width,
            height=height,
            soft_wrap=True,
            highlight=False,
            emoji=False,
            _environ={"TERM": "xterm"} | more,  # type: ignore[arg-type]
        )
        monkeypatch.setattr(training, "err", lambda: made)
        monkeypatch.setattr("afs_mlx.cli.render.console.err", lambda: made)
        return written  # type: ignore[return-value]

    return make


def text_of(written: io.StringIO) -> str:
    written.flush()
    return written.buffer.getvalue().decode(written.encoding)  # type: ignore[attr-defined, no-any-return]


def events() -> list[TrainingEvent]:
    """A whole training with everything that may happen."""
    found: list[TrainingEvent] = [PLANNED, Prepared(3, 9, 10**6, False, False), Prepared(9, 9, 3 * 10**6, True, False)]
    found += [Validated(0, 2.0, 90, True, 1.0), replace(SAMPLE, step=0)]
    for step in range(1, 41):
        found.append(replace(STEP, step=step, loss=2 - step / 40, elapsed_s=step * 7.0, eta_s=(40 - step) * 7.0))
        if step % 10 == 0:
            found += [
                Validated(step, 2 - step / 50, 90, True, step * 7.0),
                replace(SAMPLE, step=step),
                Saved(step, "x"),
            ]
    return [*found, RolledBack(31, 30, f"the loss is NaN{EVIL}", 0.5), Warned(f"on battery{EVIL}"), StoppedEarly(40, 3)]


class Screen:
    """As much of a terminal as rich's Live needs: cursor up, erase line. `lines` is screen and scrollback."""

    def __init__(self, text: str, width: int) -> None:
        self.lines, self.width, self.y, self.x = [""], width, 0, 0
        for match in re.finditer(r"\x1b\[([?0-9;]*)([A-Za-z])|([^\x1b])", text):
            number, command, char = match.groups()
            if command == "A":
                self.y -= int(number)
                assert self.y >= 0, "the cursor left the screen"
            elif command == "K":
                self.lines[self.y] = ""
            elif char == "\r":
                self.x = 0
            elif char == "\n":
                self.x, self.y = 0, self.y + 1
                self.lines += [""] * (self.y + 1 - len(self.lines))
            elif char:
                self._put(char)

    def _put(self, char: str) -> None:
        if self.x + cell_len(char) > self.width:
            self.x, self.y = 0, self.y + 1
            self.lines += [""] * (self.y + 1 - len(self.lines))
        self.lines[self.y] = self.lines[self.y].ljust(self.x)[: self.x] + char
        self.x += cell_len(char)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


def frame(**changes: object) -> TrainingFrame:
    made = TrainingFrame("din@v2 on tiny-qwen2 (demo)", total_steps=40, step=STEP, sample=SAMPLE, saved_step=10)
    made.valid_loss, made.before, made.best = 1.5, 1.75, (1.5, 20)
    for value in range(60):
        made.train.append(60.0 - value)
    for value in (3.0, 2.0, 1.5):
        made.valid.append(value)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def lines(of: TrainingFrame, width: int, height: int = 30, encoding: str = "utf-8") -> list[str]:
    return [line.plain for line in of.lines(width, height, encoding)]


def test_a_frame_shows_all_where_there_is_room() -> None:
    shown = lines(frame(), 100)
    assert shown[0] == "din@v2 on tiny-qwen2 (demo)"
    assert shown[1] == "━" * 20 + "─" * 20 + "  20/40 50%  epoch 2"
    assert shown[2].startswith("train loss 1.250  █")
    assert shown[2].endswith("▁")
    assert shown[3] == "valid loss 1.500 ↓  best 1.500 @20  █▃▁"
    assert shown[4] == "412 tok/s · 1.9 GB · rate 8.3e-05 · norm 0.8"
    assert shown[5] == "ETA 6 min 05 s · 1 min 40 s so far · saved @10"
    assert shown[6].startswith("asked    Optimise: ⏎ ```asm ⏎ lda #0 ")
    assert shown[7].startswith("answers  日本語 stz $10 xxx")
    assert shown[8] == "expected stz $10"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("width", [1, 2, 5, 12, 19, 20, 33, 49, 50, 79, 139, 300])
def test_no_line_is_wider_than_the_terminal(width: int, encoding: str) -> None:
    for line in lines(frame(), width, encoding=encoding):
        assert cell_len(line) <= width
        assert not set(line) & {"\x1b", "\n", "\u202e", "\x07", "\ud800"}
        line.encode(encoding)


def test_twenty_columns_hold_what_matters() -> None:
    shown = lines(frame(), 19)
    assert "20/40 50%" in shown[1]
    assert shown[2].startswith("train 1.250  █")
    assert shown[3] == "valid 1.500 ↓  █▃▁"
    assert shown[5] == "ETA 6 min 05 s"


@pytest.mark.parametrize(
    ("height", "wanted"),
    [(-3, ["20/40"]), (0, ["20/40"]), (1, ["20/40"]), (2, ["20/40", "train"]), (4, ["20/40", "train", "valid", "ETA"])],
)
def test_low_terminals_get_the_more_important_lines(height: int, wanted: list[str]) -> None:
    shown = lines(frame(), 60, height)
    assert len(shown) == len(wanted)
    assert all(word in line for word, line in zip(wanted, shown, strict=True))


def test_before_the_first_step_a_frame_says_what_is_done() -> None:
    assert lines(TrainingFrame(), 40) == ["starting …"]
    assert lines(TrainingFrame(phase="first validation …", total_steps=40), 40, encoding="ascii") == [
        "first validation ."
    ]


def test_ascii_bars_and_signs() -> None:
    shown = "\n".join(lines(frame(), 79, encoding="ascii"))
    assert shown.isascii()
    for part in ("#####", "-----", "valid loss 1.500 v", "@20  #:_", " / ```asm / "):
        assert part in shown


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_strange_numbers_are_shown(value: float) -> None:
    step = replace(
        STEP, loss=value, learning_rate=value, grad_norm=value, tokens_per_s=value, eta_s=value, elapsed_s=value
    )
    made = frame(step=replace(step, peak_memory_gb=value), valid_loss=value)
    made.train.append(value)
    assert lines(made, 80)
    assert lines(frame(step=replace(STEP, step=99, total_steps=40)), 80)[1].startswith("━" * 40)


def test_words_for_numbers_and_texts() -> None:
    assert [loss(x) for x in (1.23456, -0.5, 1234567.0)] == ["1.235", "-0.500", "1.2e+06"]
    assert [time_text(x) for x in (float("nan"), float("inf"), -1.0, 41.0)] == ["…", "…", "…", "41 s"]
    assert one_line(" a\tb \r\n\n c\ufe0f") == "a b ⏎ c"


@pytest.mark.parametrize("size", [(20, 24), (80, 24), (140, 40), (80, 2), (3, 1)], ids=str)
def test_a_whole_training_leaves_the_validations_in_the_scrollback(size: tuple[int, int], terminal: Terminal) -> None:
    written = terminal(*size)
    with TrainingView("din@v2") as view:
        for event in events():
            view(event)
    shown = Screen(text_of(written), size[0]).text.replace("\n", "")
    for part in (
        "step    0  valid loss 2.000",
        "step   40  valid loss 1.200",
        "notice: on battery",
        "step 31: the loss is NaN",
    ):
        assert part.replace(" ", "") in shown.replace(" ", "")
    assert "answers" not in shown, "the frame is gone"
    assert "tok/s" not in shown


def test_the_frame_is_on_the_screen_while_it_trains(terminal: Terminal) -> None:
    written = terminal()
    with TrainingView("din@v2 on tiny-qwen2 (demo)") as view:
        for event in (PLANNED, Validated(0, 2.0, 90, True, 1.0), STEP, SAMPLE):
            view(event)
        shown = Screen(text_of(written), 80).text
    for part in ("step    0  valid loss 2.000  the base", "din@v2 on tiny-qwen2 (demo)", "20/40 50%", "412 tok/s"):
        assert shown.count(part) == 1
    assert "\x1b[?25h" in text_of(written), "the cursor is shown again"


def test_no_more_than_four_frames_a_second(terminal: Terminal, clock: list[float]) -> None:
    written = terminal()
    with TrainingView() as view:
        view(STEP)
        before = len(text_of(written))
        for _ in range(1000):
            clock[0] += 0.0002
            view(STEP)
        assert len(text_of(written)) == before
        clock[0] += 0.1
        view(STEP)
        assert len(text_of(written)) > before


def test_colours_are_left_out_where_they_are_not_wanted(terminal: Terminal) -> None:
    written = terminal(NO_COLOR="1")
    with TrainingView() as view:
        for event in events():
            view(event)
    # Bold and dim are no colours.
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d)[;m]", text_of(written))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("live", [True, False])
def test_a_terminal_without_utf8(live: bool, encoding: str, terminal: Terminal) -> None:
    written = terminal(live=live, encoding=encoding)
    with TrainingView("日本") as view:
        for event in events():
            view(event)
    assert "step   40  valid loss 1.200" in text_of(written)


def test_without_a_terminal_there_are_plain_lines(terminal: Terminal) -> None:
    written = terminal(live=False)
    with TrainingView("din@v2") as view:
        for event in events():
            view(event)
    text = text_of(written)
    assert not set(text) & {"\x1b", "\r", "\u202e"}
    assert text.splitlines()[:5] == [
        "  9 rows to train, 3 to validate, 2 dropped as too long, 1 shortened",
        "  300 of 900 tokens are learnt; 60 tokens are the same in each row",
        "  1.20 M parameters, 40 steps, 12.5% padding",
        "  frozen blocks: the outputs of 9 rows kept on disk, 3.0 MB",
        "  step    0  valid loss 2.000  the base",
    ]
    steps = [line.split()[1] for line in text.splitlines() if " tok/s " in line]
    assert steps[:3] == ["3/40", "6/40", "9/40"], "one each 15 seconds of training"
    assert text.count("valid loss") == 5
    assert text.count("  expected stz $10\n") == 5
    assert "step   40  stopped early: nothing better in 3 validations" in text


def test_a_resumed_training_says_so_and_has_an_eta_at_once(terminal: Terminal) -> None:
    written = terminal(live=False)
    with TrainingView() as view:
        for event in (Resumed(30, 40, 500.0), replace(STEP, step=31, elapsed_s=516.0, eta_s=90.0)):
            view(event)
    assert text_of(written).splitlines() == [
        "  resumed after step 30, 8 min 20 s of training are behind it",
        "  step   31/40  loss 1.250  412 tok/s  1.9 GB  ETA 1 min 30 s  epoch 2",
    ]


def test_a_clock_that_a_rollback_set_back_keeps_the_lines_coming(terminal: Terminal) -> None:
    written = terminal(live=False)
    with TrainingView() as view:
        for elapsed_s in (100.0, 20.0, 30.0, 36.0):
            view(replace(STEP, elapsed_s=elapsed_s))
    assert text_of(written).count("tok/s") == 3


class Hangup(io.StringIO):
    """A terminal that goes away."""

    gone = False

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("live", [True, False])
def test_a_terminal_that_goes_away_ends_the_view_alone(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Hangup()
    made = Console(file=written, force_terminal=live, soft_wrap=True, highlight=False, _environ={"TERM": "xterm"})
    monkeypatch.setattr(training, "err", lambda: made)
    monkeypatch.setattr("afs_mlx.cli.render.console.err", lambda: made)
    stderr = sys.stderr
    with TrainingView() as view:
        view(PLANNED)
        shown = written.getvalue()
        written.gone = True
        for event in events():
            view(event)
    assert "9 rows to train" in shown
    assert sys.stderr is stderr


SCRIPT = """
from afs_mlx.cli.render.training import TrainingView
from afs_mlx.engine.training.events import Planned, Sampled, Stepped, Validated
import sys
with TrainingView("din@v2 on tiny-qwen2 (demo)") as view:
    view(Planned(40, 9, 3, 0, 0, 900, 300, 0, 1000, 0.1))
    view(Validated(0, 2.0, 90, True, 1.0))
    view(Stepped(20, 40, 2, 1.25, 8.3e-5, 0.8, 30, 412.4, 1.93, 100.0, 365.0))
    view(Sampled(20, "Q", "an answer", "E"))
    print("a stray line", file=sys.stderr)
print("the answer")
"""


def test_in_a_real_terminal_the_answer_goes_to_stdout_alone() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60", "LINES": "20", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", SCRIPT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, stdin=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    written = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    answer, _ = process.communicate(timeout=60)
    text = written.decode()
    assert (answer, process.returncode) == (b"the answer\n", 0)
    assert "20/40 50%" in text
    assert "the answer" not in text
    shown = Screen(text, 60).text
    assert "a stray line" in shown
    assert "20/40" not in shown
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_pipe_whose_reader_left_ends_the_view_alone(tmp_path: Path) -> None:
    quiet = SCRIPT.replace('print("a stray line", file=sys.stderr)', "pass")
    script = f"{quiet}\nopen({str(tmp_path / 'trained')!r}, 'w').close()"
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", script], stderr=stderr, stdout=subprocess.DEVNULL, cwd=ROOT, check=False
        )
    assert (tmp_path / "trained").exists()
    assert done.returncode == 0
