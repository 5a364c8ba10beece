"""What may be said of two runs, and what may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.runs.comparison import Comparison, compare
from afs_mlx.runs.folder import Run
from afs_mlx.runs.history import parse_history
from afs_mlx.runs.overview import Overview, figures, state

BASE = {"id": "tiny-qwen2", "weights_sha256": "a" * 64}
DATA = {"inputs": [{"file": "din.jsonl", "sha256": "d" * 64, "rows": 9}], "seed": 0, "valid_share": 0.12}
RECORD: dict[str, Any] = {
    "expert": "din",
    "version": "v2",
    "status": "finished",
    "base": BASE,
    "data": DATA,
    "recipe": {"rank": 8, "batch_tokens": 256, "speed": {"lean": True}},
    "system": "You are Din.",
    "machine": {"processor": "Apple M1"},
}


def overview(best: float = 1.0, base_loss: float = 2.0, tokens_per_s: float = 100.0, **changes: Any) -> Overview:
    rows: list[dict[str, Any]] = [{"step": 0, "valid/loss": base_loss}]
    for step in range(1, 21):
        rows.append({"step": step, "train/loss": float(step), "tokens_per_s": tokens_per_s})
    rows += [{"step": 10, "valid/loss": (best + base_loss) / 2}, {"step": 20, "valid/loss": best}]
    history = parse_history([json.dumps(row).encode() + b"\n" for row in rows])
    run = Run(Path("/runs/r"), RECORD | changes)
    return Overview(run, history, figures(run, history), state(run))


def obstacles(**changes: Any) -> tuple[str, ...]:
    found = compare([overview(), overview(0.5, **changes)])
    assert found.comparable is not bool(found.obstacles)
    if found.obstacles:
        assert found.verdict[0].startswith("losses are not comparable: ")
        assert not any("lowest" in line for line in found.verdict)
    return found.obstacles


def verdict(*runs: Overview) -> str:
    return "\n".join(compare(runs).verdict)


def test_the_same_base_and_rows_are_ranked_without_overclaiming() -> None:
    found = compare([overview(1.0), overview(0.8)])
    assert found.verdict[0] == "B has the lowest validation loss: 0.8000 at step 20; A 1.0000 (+25.0%)"
    assert "another seed" in found.verdict[1]
    assert (found.obstacles, found.caveats, found.settings) == ((), (), {})


def test_a_small_difference_is_none() -> None:
    text = verdict(overview(1.0), overview(0.995))
    assert text == "as good as equal: best validation losses within 1% (B 0.9950, A 1.0000)"


def test_another_base_is_not_comparable() -> None:
    assert obstacles(base={"id": "other", "weights_sha256": "b" * 64}) == ("other base (tiny-qwen2, other)",)
    assert obstacles(base={"id": "other"}) == ("other base (tiny-qwen2, other)",)
    assert obstacles(base=BASE | {"weights_sha256": "b" * 64}) == ("other weights of the base tiny-qwen2",)
    assert obstacles(base=None) == ("other base (tiny-qwen2, not recorded)",)


def test_two_runs_that_record_no_base_are_not_comparable() -> None:
    assert "the base is not recorded" in compare([overview(base=None), overview(base=None)]).obstacles


def test_other_data_is_not_comparable() -> None:
    assert obstacles(data={**DATA, "inputs": [{"file": "din.jsonl", "sha256": "e" * 64}]}) == ("other data",)
    assert obstacles(data={**DATA, "seed": 1}) == ("another split of the same data",)
    for nothing in (None, {}, {"inputs": []}, {"inputs": "x"}, {"inputs": [{"file": 3}]}):
        assert obstacles(data=nothing) == ("the data is not recorded for every run",)


def test_the_same_validation_file_beside_other_training_rows_is_comparable() -> None:
    def folder(train: str, valid: str) -> dict[str, Any]:
        return {"inputs": [{"file": "train.jsonl", "sha256": train}, {"file": "valid.jsonl", "sha256": valid}]}

    same = compare([overview(data=folder("1", "v")), overview(data=folder("2", "v"))])
    assert same.comparable
    assert "training losses are over other rows" in same.caveats
    assert compare([overview(data=folder("1", "v")), overview(data=folder("1", "w"))]).obstacles == ("other data",)


def test_rows_that_may_have_been_cut_otherwise_are_not_comparable() -> None:
    drop = {"over_long": "drop", "max_seq_tokens": 512}
    assert obstacles(recipe=drop) == ("rows that are too long are handled otherwise",)
    assert obstacles(recipe={"over_long": "error", "max_seq_tokens": 512}) == ()
    with_limits = [overview(recipe=drop | {"max_seq_tokens": limit}) for limit in (512, 256)]
    assert not compare(with_limits).comparable


def test_a_base_that_scores_otherwise_was_measured_otherwise() -> None:
    found = compare([overview(base_loss=2.0), overview(base_loss=2.2)])
    assert found.obstacles == (
        "the same base came to 2.0000 and 2.2000 on the same rows, so the loss was measured otherwise",
    )
    assert compare([overview(base_loss=2.0), overview(base_loss=2.01)]).comparable


def test_another_system_text_explains_another_base_loss() -> None:
    found = compare([overview(base_loss=2.0), overview(base_loss=2.2, system="Other.")])
    assert found.comparable
    assert found.caveats == ("the system text differs, and with it the loss of the base",)


def test_other_batches_make_equal_steps_unequal_work() -> None:
    recipe = RECORD["recipe"] | {"batch_tokens": 512}
    assert "equal steps are not equal work" in " ".join(compare([overview(), overview(recipe=recipe)]).caveats)


def test_a_missing_hash_is_said() -> None:
    found = compare([overview(), overview(base={"id": "tiny-qwen2"})])
    assert found.caveats == ("not every run records the hash of its base's weights",)


def test_settings_that_differ_and_only_those() -> None:
    found = compare([overview(), overview(recipe={"rank": 8, "batch_tokens": 256, "speed": {"lean": False}, "new": 1})])
    assert found.settings == {"recipe.speed.lean": (True, False), "recipe.new": (None, 1)}


def test_what_is_not_done_and_what_is_worse_than_its_base_is_said() -> None:
    text = verdict(overview(0.5, status="interrupted"), overview(3.0))
    assert "A is not done (interrupted, step 20): what it comes to is open" in text
    assert "no step of B was better than its base" in text


def test_of_speed_nothing_is_claimed() -> None:
    """Two equal runs differ by what else the machine does."""

    def caveats(**changes: Any) -> str:
        found = compare([overview(), overview(**changes)])
        assert not any("tokens per second" in line for line in found.verdict)
        return " ".join(found.caveats)

    assert "speeds were not measured on one machine side by side" in caveats(tokens_per_s=200.0)
    assert "not measured on one kind of machine" in caveats(tokens_per_s=200.0, machine={"processor": "x86"})
    assert "speeds" not in caveats(tokens_per_s=102.0)


def test_losses_at_equal_steps() -> None:
    found = compare([overview(1.0), overview(0.5)])
    assert [row.step for row in found.at_steps] == [0, 10, 20]
    assert found.at_steps[0].train == (None, None)
    assert found.at_steps[1].valid == (1.5, 1.25)
    assert found.at_steps[2].train == (15.5, 15.5), "the mean of steps 11 to 20"


def test_training_steps_stand_in_for_common_validations() -> None:
    one = overview()
    rows = [b'{"step": %d, "train/loss": 1}\n' % number for number in range(1, 31)]
    history = parse_history([*rows, b'{"step": 7, "valid/loss": 1}\n'])
    other = Overview(one.run, history, figures(one.run, history), "running")
    found = compare([one, other])
    assert [row.step for row in found.at_steps] == [1, 3, 6, 9, 11, 14, 17, 20]
    assert all(row.valid == (None, None) or row.step in (10, 20) for row in found.at_steps)


def test_runs_without_metrics_have_nothing_to_compare() -> None:
    history = parse_history([])
    run = Run(Path("/runs/r"), RECORD)
    bare = Overview(run, history, figures(run, history), "imported")
    found = compare([overview(), bare])
    assert found.verdict == ("B: no validation loss is known, so there is nothing to compare",)
    assert found.at_steps == ()


@pytest.mark.parametrize("value", [None, 3, "text", [], [[]], [3], {}, {"a": 3}, {"inputs": [[], 3]}])
def test_strange_records_are_no_obstacle_to_an_answer(value: object) -> None:
    keys = ("base", "data", "recipe", "system", "machine", "code", "packages", "version", "expert", "process")
    strange = overview(**dict.fromkeys(keys, value))
    found: Comparison = compare([overview(), strange, strange])
    assert found.verdict
    assert not found.comparable
