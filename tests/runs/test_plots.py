"""Curves, sparklines, the chart of characters and the HTML page, also of numbers and names that want to break out."""

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from afs_mlx.runs.history import History, Sample, parse_history
from afs_mlx.runs.plots.chart import chart
from afs_mlx.runs.plots.curves import (
    MOST_POINTS,
    Curve,
    RunCurves,
    buckets,
    curves_of,
    extent,
    smoothed,
    sparkline,
    ticks,
)
from afs_mlx.runs.plots.page import PageRun, page

EVIL = "</td><script>alert(1)</script><img src=http://x onerror=y>\x1b[2J\u202e\ud800&\"'"


def history(losses: list[float], valid: dict[int, float] | None = None) -> History:
    rows: list[dict[str, float]] = [
        {"step": step, "train/loss": loss, "learning_rate": 1e-4, "tokens_per_s": 5.0}
        for step, loss in enumerate(losses, start=1)
    ]
    rows += [{"step": step, "valid/loss": loss} for step, loss in (valid or {}).items()]
    return parse_history([json.dumps(row).encode() + b"\n" for row in rows])


FALLING = curves_of("falling", history([2 - step / 100 for step in range(100)], {0: 2.1, 50: 1.6, 100: 1.2}))


def text(
    runs: list[RunCurves], width: int = 60, height: int = 12, braille: bool = False, ascii_only: bool = True
) -> str:
    return "\n".join("".join(span.text for span in row) for row in chart(runs, width, height, braille, ascii_only))


def test_a_sparkline_falls_from_the_highest_block_to_the_lowest() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8, ascii_only=True) == "#*+=-:._"
    assert sparkline([4, 4, 1, 1], 2) == "█▁", "each block is the mean of its share"
    assert sparkline([1, 2], 80) == "▁█", "no wider than there are values"


@pytest.mark.parametrize(("values", "width"), [([], 5), ([math.nan], 5), ([1.0, 2.0], 0), ([1.0], -3)])
def test_a_sparkline_of_nothing(values: list[float], width: int) -> None:
    assert sparkline(values, width) == ""


def test_a_flat_sparkline_and_one_with_gaps() -> None:
    assert sparkline([3.0, 3.0], 2) == "▅▅"
    assert sparkline([1.0, math.nan, 2.0, math.inf], 9) == "▁█"


def test_a_growing_curve_stays_small_and_keeps_its_mean() -> None:
    curve = Curve(most=8)
    for value in range(1000):
        curve.append(float(value))
    assert 4 <= len(curve.values) <= 9
    assert curve.values == sorted(curve.values)
    assert abs(curve.values[0] - curve.values[-1]) > 800
    for value in (math.nan, math.inf, 1e300):
        curve.append(value)
    assert max(curve.values) < 1000


def test_smoothing_is_a_mean_of_neighbours() -> None:
    assert smoothed([0, 3, 0, 3, 0], 1) == [1.5, 1, 2, 1, 1.5]
    assert smoothed([1, 5], 0) == [1, 5]
    assert smoothed([], 3) == []


def test_buckets_cover_all_and_none_is_empty() -> None:
    for count in range(30):
        ranges = buckets(count, 7)
        assert [i for a, b in ranges for i in range(a, b)] == list(range(count))
        assert all(b > a for a, b in ranges)


def test_curves_are_thinned_and_gaps_counted() -> None:
    found = curves_of("r", history([math.nan, *[1.0] * 5000], {0: math.inf, 7: 1.0}))
    assert len(found.train) == MOST_POINTS
    assert found.train[-1][0] > 4900
    assert (found.valid, found.gaps) == (((7.0, 1.0),), 2)
    assert curves_of("r", history([])).empty


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.7, 2.8, 5, [1, 1.5, 2, 2.5]),
        (-3, 4000, 4, [0, 2000, 4000]),
        (5, 5, 4, [5]),
        (0, math.inf, 4, [0]),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(expected)


def test_an_extent_is_never_nothing() -> None:
    for values in ([], [math.nan], [0.0], [5.0, 5.0], [-1.0, 1.0]):
        low, high = extent(values)
        assert low < high


def test_a_chart_fits_and_falls() -> None:
    rows = text([FALLING]).splitlines()
    assert len(rows) == 12
    assert max(map(len, rows)) <= 60
    assert rows[-1].strip().startswith("0")
    assert rows[-1].endswith("step 100")
    points = [(x, y) for y, row in enumerate(rows[:-2]) for x, char in enumerate(row) if char == "o"]
    assert len(points) == 3
    assert sorted(points) == sorted(points, key=lambda point: point[1]), "the loss falls to the right"


def test_a_chart_in_braille_and_in_ascii() -> None:
    assert any(0x2800 < ord(char) <= 0x28FF for char in text([FALLING], braille=True, ascii_only=False))
    assert text([FALLING]).isascii()


def test_several_runs_are_told_apart_by_letter_and_sign() -> None:
    lower = curves_of("lower", history([1 - step / 100 for step in range(60)], {30: 0.5}))
    rows = chart([FALLING, lower], 60, 14, False, True)
    assert {"A", "B", ".", "+"} <= set("".join(span.text for row in rows for span in row))
    assert {span.run for row in rows for span in row} == {-1, 0, 1}


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (20, 4), (300, 3)])
@pytest.mark.parametrize("losses", [[], [1.0], [math.nan], [1e12, -1e12], [1.0, 1.0]], ids=str)
def test_a_chart_of_any_size_and_loss(size: tuple[int, int], losses: list[float]) -> None:
    curves = curves_of("r", history(losses, {1: 1.0}))
    for braille in (False, True):
        assert text([curves], *size, braille=braille)


class _Page(HTMLParser):
    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def made(*curves: RunCurves) -> str:
    samples = [Sample(0, EVIL, EVIL, EVIL)]
    runs = [PageRun(curve, [("status", EVIL), (EVIL, "x")], samples) for curve in curves]
    return page(EVIL, runs, [(EVIL, *[EVIL] * len(curves))], [EVIL])


def test_the_page_holds_curves_points_and_facts() -> None:
    document = page("title", [PageRun(FALLING, [("rank", "8")], [Sample(5, "Q?", "An answer", "E")])], [], ["A remark"])
    parsed = _Page(document)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("circle") == 3
    assert tags.count("polygon") == 1
    assert {"A remark", "rank", "8", "An answer", "step 50: validation loss 1.6000"} <= set(parsed.texts)
    for svg in re.findall(r"(?s)<svg.*?</svg>", document):
        ElementTree.fromstring(svg)


def test_nothing_in_the_page_runs_or_asks_the_network() -> None:
    parsed = _Page(made(curves_of(EVIL, history([1.0, 2.0], {0: 1.0})), FALLING))
    used = {tag for tag, _ in parsed.tags}
    assert not used & {"script", "img", "link", "iframe", "object", "embed", "a", "image", "use", "base", "form"}
    attributes = {name for _, attrs in parsed.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"src", "href", "xlink:href"})
    policy = next(a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert any("<script>alert(1)</script>" in part for part in parsed.texts), "it is shown, as text"


def test_the_page_can_be_written_and_has_no_controls() -> None:
    document = made(curves_of(EVIL, history([1.0], {0: 1.0})))
    document.encode("utf-8")
    assert not set(document) & {"\x1b", "\u202e", "\ud800"}


@pytest.mark.parametrize("losses", [[], [1.0], [math.nan] * 3, [1e12, -1e12]], ids=str)
def test_a_page_of_any_loss_has_only_finite_coordinates(losses: list[float]) -> None:
    document = made(curves_of("r", history(losses, {1: 1.0})))
    coordinates = re.findall(r'(?:points|x|y|cx|cy|x1|x2|y1|y2)="([^"]*)"', document)
    assert coordinates
    assert not re.search(r"nan|inf|e\+", " ".join(coordinates))


def test_a_hundred_thousand_steps_make_a_small_page() -> None:
    assert len(page("t", [PageRun(curves_of("r", history([1.0] * 100_000)), [])], [], [])) < 100_000
