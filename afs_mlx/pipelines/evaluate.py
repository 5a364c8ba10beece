"""Asks a suite of a base with or without an adapter, scores the answers, holds them against the gate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.files import read_json, write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.evaluation.gate import Verdict, gate
from afs_mlx.evaluation.run import check_scores, overall, run_suite
from afs_mlx.evaluation.suites import load_suite
from afs_mlx.schema.case import CaseResult
from afs_mlx.schema.expert import Shot, opening_turns
from afs_mlx.schema.message import Message
from afs_mlx.schema.score import Score


@dataclass(frozen=True)
class EvaluateConfig:
    """What to ask of whom. `out` is the result file; `before` a result file of the same suite to be held against."""

    suite: Path
    model_folder: Path
    base: dict[str, str]
    demo: bool
    system: str
    out: Path
    shots: tuple[Shot, ...] = ()
    adapter: Path | None = None
    threshold: float = 0.0
    before: Path | None = None
    label: str = ""


@dataclass(frozen=True)
class CaseDone:
    """One more answer is scored."""

    result: CaseResult
    done: int
    total: int


@dataclass(frozen=True)
class EvaluateResult:
    """`score` is None when something could not be verified here; `why_unverified` then says what."""

    path: Path
    suite: str
    score: Score | None
    checks: dict[str, Score]
    verdict: Verdict
    results: list[CaseResult]
    measures: str
    limits: str
    why_unverified: str


def evaluate(config: EvaluateConfig, on_event: Callable[[CaseDone], None]) -> EvaluateResult:
    """Answer greedily, score, write the result file whole. Raises AfsError for a bad suite, base or adapter."""
    suite = load_suite(config.suite)
    inputs = [input_file(path) for path in suite.files]
    before = _score_in(config.before, inputs) if config.before else None
    from afs_mlx.engine.adapters.attaching import load_with_adapter
    from afs_mlx.engine.inference.generation import Generator

    generator = Generator(load_with_adapter(config.model_folder, config.adapter))
    opening = opening_turns(config.system, config.shots)

    def ask(questions: Sequence[str], max_tokens: int, enough: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
        return generator.answers([[*opening, Message(role="user", content=q)] for q in questions], max_tokens, enough)

    results = run_suite(suite, ask, lambda result, done, total: on_event(CaseDone(result, done, total)))
    score = overall(results)
    verdict = gate(score, config.threshold, before, demo=config.demo)
    unverified = next((result.why for result in results if result.passed is None), "")
    checks = check_scores(results)
    record: dict[str, Any] = {
        **provenance("eval"),
        "suite": suite.name,
        "label": config.label,
        "inputs": inputs,
        "base": config.base,
        "demo": config.demo,
        "adapter": config.adapter.name if config.adapter else "",
        "decoding": {"greedy": True, "max_tokens": suite.header.max_tokens},
        "score": score.model_dump() if score else None,
        "checks": {name: value.model_dump() for name, value in checks.items()},
        "gate": verdict.model_dump(),
        "measures": suite.header.measures,
        "limits": suite.header.limits,
        "cases": [result.model_dump() for result in results],
    }
    write_json(config.out, record)
    return EvaluateResult(
        config.out, suite.name, score, checks, verdict, results, suite.header.measures, suite.header.limits, unverified
    )


def _score_in(path: Path, inputs: list[dict[str, Any]]) -> Score | None:
    """The score of an earlier result, None when it was unverified or asked of another state of the suite."""
    record = read_json(path, "the earlier result")
    value = record.get("score")
    return Score.model_validate(value) if value and record.get("inputs") == inputs else None
