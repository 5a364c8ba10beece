"""What stored results say about shipping: which count, and what the newest is held against."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.evaluation.history import Candidate, Earlier, Judgement, StoredResult, judge, read_result
from afs_mlx.schema.score import Score

INPUTS = [{"file": "optimisation.toml", "sha256": "a" * 64, "size_bytes": 9}]
BASE = {"id": "smollm2-135m", "revision": "", "weights_sha256": "b" * 64}
CANDIDATE = Candidate(
    label="din@v2",
    suite="optimisation",
    inputs=INPUTS,
    base=BASE,
    system="You are Din.",
    shots=[],
    threshold=0.5,
    adapter="v2-b",
    adapter_sha256="c" * 64,
    changed_at="2026-11-20T00:00:00Z",
)


def stored(passed: int = 7, **changes: Any) -> dict[str, Any]:
    """A result file's JSON, with keys that shipping does not read."""
    score = Score.of(passed, 10).model_dump()
    return {
        "schema_version": 1,
        "made_at": "2026-11-23T10:00:00Z",
        "suite": "optimisation",
        "label": "v2-b",
        "inputs": INPUTS,
        "base": BASE,
        "system": "You are Din.",
        "shots": [],
        "demo": False,
        "adapter": "v2-b",
        "adapter_sha256": "c" * 64,
        "score": score,
        "gate": {"passed": True, "reason": "0.70 reaches the threshold 0.50", "threshold": 0.5, "before": None},
        "cases": [],
    } | changes


def judged(path: Path, result: dict[str, Any], *others: dict[str, Any], **more: Any) -> Judgement:
    path.write_text(json.dumps(result))
    return judge(more.pop("candidate", CANDIDATE), path, [StoredResult.model_validate(one) for one in others], **more)


def other(passed: int, made_at: str, **changes: Any) -> dict[str, Any]:
    return stored(passed, label="v2-a", adapter="v2-a", made_at=made_at, **changes)


def test_a_result_that_passed_its_gate_may_be_shipped(tmp_path: Path) -> None:
    found = judged(tmp_path / "r.json", stored())
    assert found.passed
    assert found.before is None
    assert found.result is not None
    assert found.result.score == Score.of(7, 10)


def test_none_at_all(tmp_path: Path) -> None:
    found = judge(CANDIDATE, tmp_path / "r.json")
    assert found.reasons == ("din@v2 was never evaluated on optimisation",)
    assert not found.passed


def test_below_the_newest_one_before_it(tmp_path: Path) -> None:
    older, newer = other(4, "2026-11-21T10:00:00Z"), other(8, "2026-11-22T10:00:00Z")
    found = judged(tmp_path / "r.json", stored(7), older, newer)
    assert found.reasons == ("0.70 is below the 0.80 of v2-a (2026-11-22T10:00:00Z)",)
    assert found.before == Earlier("v2-a", "2026-11-22T10:00:00Z", Score.of(8, 10))
    assert judged(tmp_path / "r.json", stored(8), older, newer).passed, "the same score is not below"
    assert judged(tmp_path / "r.json", stored(7), newer, other(4, "2026-11-22T11:00:00Z")).passed


@pytest.mark.parametrize(
    "changes",
    [
        {"made_at": "2026-11-24T10:00:00Z"},
        {"base": BASE | {"id": "qwen2.5-coder-3b"}},
        {"base": BASE | {"weights_sha256": "d" * 64}},
        {"inputs": [INPUTS[0] | {"sha256": "e" * 64}]},
        {"score": None},
    ],
)
def test_what_measures_otherwise_is_not_before_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = judged(tmp_path / "r.json", stored(7), other(9, "2026-11-22T10:00:00Z") | changes)
    assert found.passed
    assert found.before is None


def test_below_what_is_deployed(tmp_path: Path) -> None:
    deployed = Earlier("the deployed v2-a", "2026-11-25T00:00:00Z", Score.of(9, 10))
    found = judged(tmp_path / "r.json", stored(7), other(6, "2026-11-22T10:00:00Z"), deployed=deployed)
    assert found.reasons == ("0.70 is below the 0.90 of the deployed v2-a (2026-11-25T00:00:00Z)",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": []}, "the suite optimisation was changed since"),
        ({"base": BASE | {"id": "qwen2.5-coder-3b"}}, "it is of qwen2.5-coder-3b, not of smollm2-135m"),
        ({"base": BASE | {"weights_sha256": "d" * 64}}, "smollm2-135m has other weights now"),
        ({"system": "You are Dina."}, "the prompt was changed since"),
        ({"shots": [{"user": "a", "assistant": "b"}]}, "the prompt was changed since"),
        ({"adapter": ""}, "it is of the bare base, not of v2-b"),
        ({"adapter": "v2-a"}, "it is of v2-a, not of v2-b"),
        ({"adapter_sha256": "d" * 64}, "the adapter was changed since"),
    ],
)
def test_a_result_of_something_else_does_not_count(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    found = judged(tmp_path / "r.json", stored() | changes)
    assert found.reasons == (f"the result of 2026-11-23T10:00:00Z does not count: {reason}",)
    assert found.result is None


@pytest.mark.parametrize(("changed_at", "passed"), [("2026-11-23T09:59:59Z", True), ("2026-11-23T10:00:01Z", False)])
def test_a_result_without_a_hash_is_held_against_the_file_s_time(tmp_path: Path, changed_at: str, passed: bool) -> None:
    old = {key: value for key, value in stored().items() if key != "adapter_sha256"}
    found = judged(tmp_path / "r.json", old, candidate=replace(CANDIDATE, changed_at=changed_at))
    assert found.passed == passed
    assert passed or "the adapter was written after it" in found.reasons[0]


def test_an_unverified_result_and_a_gate_that_was_not_passed(tmp_path: Path) -> None:
    no_gate = {"passed": False, "reason": "not verified", "threshold": 0.5, "before": None}
    assert judged(tmp_path / "r.json", stored(score=None, gate=no_gate)).reasons == (
        "the newest result is not verified",
    )
    low = {"passed": False, "reason": "0.40 is below the threshold 0.50", "threshold": 0.5, "before": None}
    found = judged(tmp_path / "r.json", stored(4, gate=low), other(6, "2026-11-22T10:00:00Z"))
    assert found.reasons == (
        "0.40 is below the 0.60 of v2-a (2026-11-22T10:00:00Z)",
        "the gate was not passed: 0.40 is below the threshold 0.50",
    )


def test_a_threshold_that_was_raised_since(tmp_path: Path) -> None:
    raised = replace(CANDIDATE, threshold=0.9)
    found = judged(tmp_path / "r.json", stored(), candidate=raised)
    assert found.reasons == ("0.70 is below the threshold, which is 0.90 now",)
    assert judged(tmp_path / "r.json", stored(demo=True), candidate=raised).passed, "it is meant for the real base"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ('{"suite": "x"}', "made_at: Field required"), ("[]", "not a JSON object")],
)
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(AfsError, match=message):
        read_result(tmp_path / "r.json")
    found = judge(CANDIDATE, tmp_path / "r.json")
    assert found.result is None
    assert message in found.reasons[0]
