"""A suite asked of a base and of an adapter: scores with their count, the gate, and a result file that is whole."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import sha256_of
from afs_mlx.engine.adapters.format import WEIGHTS
from afs_mlx.engine.bases.loading import load_base
from afs_mlx.engine.inference.generation import Generator
from afs_mlx.engine.training import lora, trainer
from afs_mlx.engine.training.rows import tokenise
from afs_mlx.evaluation.suites import load_suite
from afs_mlx.pipelines.evaluate import CaseDone, EvaluateConfig, EvaluateResult, evaluate
from afs_mlx.schema.example import Example
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe
from afs_mlx.snes.asar import Assembly
from afs_mlx.snes.equivalence import judging

SYSTEM = "You are Din."
ANSWER = "```asm\n  stz $10\n```"
SUITE = """
title = "three routines"
scorer = "optimisation"
cases = "rows.jsonl"
max_tokens = 24
measures = "whether a cheaper routine comes back"
limits = "three cases"
"""


def row(number: int) -> dict[str, Any]:
    return {
        "id": f"case-{number}",
        "family": "stz",
        "goal": "bytes",
        "entry": {"m": 8, "x": 8},
        "live": [],
        "code": f"  ld{'axy'[number]} #$00\n  st{'axy'[number]} $10",
        "better": "  stz $10",
        "reason": "one store",
        "not_when": "A is read",
    }


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites")
    (folder / "small.toml").write_text(SUITE)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(3)))
    return folder / "small.toml"


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows one answer by heart, which is right for all three."""
    base = load_base(tiny_base)
    recipe = Recipe(rank=8, alpha=16, layers=3, learning_rate=5e-3, epochs=25, batch_tokens=4096, warmup_fraction=0.1)
    keys = lora.attach(base.model, recipe)
    answer = Message(role="assistant", content=ANSWER)
    examples = [
        Example(messages=(Message(role="user", content=case.question), answer)).with_system(SYSTEM)
        for case in load_suite(suite).cases
    ]
    rows = tokenise(examples, base.tokenizer, recipe, "rows")
    trainer.train(base.model, recipe, rows, rows, lambda event: None, lambda: False)
    folder = tmp_path_factory.mktemp("adapters") / "v2-run"
    lora.write(folder, base.model, recipe, keys, {"id": "tiny", "weights_sha256": ""}, tiny_base, "din")
    return folder


@pytest.fixture
def config(suite: Path, tiny_base: Path, tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        suite=suite,
        model_folder=tiny_base,
        base={"id": "tiny", "revision": "", "weights_sha256": "0" * 64},
        demo=False,
        system=SYSTEM,
        out=tmp_path / "results" / "small.json",
        threshold=0.6,
        label="base-tiny",
    )


def run(config: EvaluateConfig) -> EvaluateResult:
    return evaluate(config, lambda event: None)


def test_a_base_that_knows_nothing_scores_nothing(config: EvaluateConfig) -> None:
    events: list[CaseDone] = []
    result = evaluate(config, events.append)
    assert result.score is not None
    assert (result.score.value, result.score.n) == (0, 3)
    assert result.score.low == 0 < result.score.high < 1, "none of three is not a proof of never"
    assert not result.verdict.passed
    assert [(event.done, event.total) for event in events] == [(1, 3), (2, 3), (3, 3)]
    assert [case.id for case in result.results] == ["case-0", "case-1", "case-2"], "in the suite's order"


def test_an_adapter_is_put_on_and_held_against_the_base(config: EvaluateConfig, adapter: Path) -> None:
    before = run(config)
    out = config.out.with_name("after.json")
    after = run(replace(config, adapter=adapter, before=before.path, out=out, label="v2-run"))
    assert after.score is not None
    assert (after.score.value, after.score.n, after.score.high) == (1, 3, 1)
    assert after.verdict.passed
    assert after.verdict.before == 0
    assert all(result.answer.startswith(ANSWER) for result in after.results)
    assert after.checks["equal"].value == after.checks["cheaper"].value == 1
    worse = run(replace(config, before=after.path, threshold=0))
    assert not worse.verdict.passed
    assert "below the 1.00 before it" in worse.verdict.reason


def test_the_file_says_what_was_asked_of_whom(config: EvaluateConfig, adapter: Path, suite: Path) -> None:
    result = run(replace(config, adapter=adapter, demo=True))
    record = json.loads(config.out.read_text())
    assert result.path == config.out
    assert (record["suite"], record["label"], record["demo"], record["adapter"]) == (
        "small",
        "base-tiny",
        True,
        "v2-run",
    )
    assert record["base"] == config.base
    assert record["decoding"] == {"greedy": True, "max_tokens": 24}
    files = {entry["file"]: entry["sha256"] for entry in record["inputs"]}
    assert files == {path.name: sha256_of(path) for path in (suite, suite.with_name("rows.jsonl"))}
    assert (record["score"]["value"], record["score"]["n"]) == (1, 3)
    assert record["gate"] == result.verdict.model_dump()
    assert [case["id"] for case in record["cases"]] == ["case-0", "case-1", "case-2"]
    assert record["limits"] == "three cases"
    assert record["packages"]["mlx-lm"]


def test_the_same_answers_come_again(config: EvaluateConfig, adapter: Path) -> None:
    first, second = (run(replace(config, adapter=adapter)) for _ in range(2))
    assert [result.answer for result in first.results] == [result.answer for result in second.results]
    bare = [[result.answer for result in run(config).results] for _ in range(2)]
    assert bare[0] == bare[1] != [result.answer for result in first.results]


def test_every_question_stands_after_system_text_and_shots(
    config: EvaluateConfig, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[str, str]]] = []
    limits: list[int] = []

    def answers(
        self: Generator, conversations: Sequence[Sequence[Message]], max_tokens: int, *rest: Any
    ) -> Iterator[tuple[int, str]]:
        asked.extend([(m.role, m.content) for m in conversation] for conversation in conversations)
        limits.append(max_tokens)
        yield from ((index, "no code") for index in reversed(range(len(conversations))))

    monkeypatch.setattr(Generator, "answers", answers)
    result = run(replace(config, shots=(Shot(user="lda #$00", assistant="stz"),)))
    assert limits == [24]
    assert [talk[-1] for talk in asked] == [("user", case.question) for case in load_suite(suite).cases]
    assert all(talk[:-1] == [("system", SYSTEM), ("user", "lda #$00"), ("assistant", "stz")] for talk in asked)
    assert [case.id for case in result.results] == ["case-0", "case-1", "case-2"]


@pytest.mark.parametrize("name", ["other.toml", "small.toml"])
def test_a_score_of_other_cases_is_no_measure(config: EvaluateConfig, suite: Path, tmp_path: Path, name: str) -> None:
    """Neither of another suite nor of the same one before its cases changed."""
    other = tmp_path / name
    other.write_text(SUITE)
    lines = suite.with_name("rows.jsonl").read_text().splitlines(keepends=True)
    other.with_name("rows.jsonl").write_text("".join(lines if name == "other.toml" else lines[:2]))
    before = run(replace(config, suite=other, out=tmp_path / "other.json"))
    assert run(replace(config, before=before.path)).verdict.before is None


def test_without_asar_there_is_no_score_and_no_pass(
    config: EvaluateConfig, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "assemble", lambda code: Assembly("unavailable", 0x8000))
    result = run(replace(config, adapter=adapter, threshold=0))
    assert result.score is None
    assert not result.verdict.passed
    assert "Asar is not installed" in result.why_unverified
    assert json.loads(config.out.read_text())["score"] is None
    assert run(replace(config, before=config.out, out=config.out.with_name("b.json"))).verdict.before is None


def test_a_broken_adapter_is_told_and_writes_nothing(config: EvaluateConfig, adapter: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in adapter.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:200] if file.name == WEIGHTS else file.read_bytes())
    with pytest.raises(AfsError, match="safetensors"):
        run(replace(config, adapter=broken))
    assert not config.out.exists()


def test_an_earlier_result_survives_a_run_that_breaks_off(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    kept = config.out.read_bytes()

    def answers(self: Generator, conversations: Any, max_tokens: int, *rest: Any) -> Iterator[tuple[int, str]]:
        yield 0, "one"
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "answers", answers)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert config.out.read_bytes() == kept
    assert list(config.out.parent.iterdir()) == [config.out]


def test_a_suite_with_an_unknown_scorer_costs_no_model(
    config: EvaluateConfig, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(SUITE.replace('scorer = "optimisation"', 'scorer = "optimization"'))
    with pytest.raises(AfsError, match="there is no scorer 'optimization'") as caught:
        run(replace(config, suite=bad, model_folder=tmp_path / "no base"))
    assert "optimisation" in caught.value.fix
