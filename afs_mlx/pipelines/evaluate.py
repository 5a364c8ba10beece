"""Asks a suite of a base with or without an adapter, scores the answers, holds them against the gate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afs_mlx.answering import Answerer
from afs_mlx.core.files import read_json, sha256_of, write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.evaluation.gate import Measured, Verdict, gate
from afs_mlx.evaluation.run import check_scores, overall, run_suite
from afs_mlx.evaluation.suites import load_suite
from afs_mlx.runs.folder import WEIGHTS
from afs_mlx.runs.selection import results_folder
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


def config_for(found: Answerer, suite: Path, workspace: Workspace) -> EvaluateConfig:
    """The evaluation of what answers on a suite's TOML file; the result lies below evals/results/.

    A run is held against the bare base under the same version's prompt, where that was asked before.
    """
    expert, version = found.expert, found.expert.version if found.expert else None
    home = expert.name if expert else (found.run.expert if found.run else "") or "models"
    bare = replace(found, run=None, fused=False)
    before = results_folder(workspace, home, bare.label) / f"{suite.stem}.json"
    return EvaluateConfig(
        suite=suite,
        model_folder=found.base.folder,
        base=found.base.identity,
        demo=found.base.demo,
        system=found.system,
        shots=version.shots if version else (),
        out=results_folder(workspace, home, found.label) / f"{suite.stem}.json",
        adapter=found.run.path if found.run else None,
        threshold=version.threshold if version else 0.0,
        before=before if found.run is not None and before.is_file() else None,
        label=found.label,
    )


def evaluate(config: EvaluateConfig, on_event: Callable[[CaseDone], None]) -> EvaluateResult:
    """Answer greedily, score, write the result file whole. Raises AfsError for a bad suite, base or adapter."""
    suite = load_suite(config.suite)
    # What a score depends on beside the weights: two results are compared only where all of it is the same.
    asked: dict[str, Any] = {
        "inputs": [input_file(path) for path in suite.files],
        "base": config.base,
        "system": config.system,
        "shots": [shot.model_dump() for shot in config.shots],
        "decoding": {"greedy": True, "max_tokens": suite.header.max_tokens},
    }
    before = _measured_in(config.before, asked) if config.before else None
    from afs_mlx.engine.adapters.attaching import load_with_adapter
    from afs_mlx.engine.inference.generation import Generator

    generator = Generator(load_with_adapter(config.model_folder, config.adapter))
    opening = opening_turns(config.system, config.shots)

    def ask(questions: Sequence[str], max_tokens: int, enough: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
        return generator.answers([[*opening, Message(role="user", content=q)] for q in questions], max_tokens, enough)

    results = run_suite(suite, ask, lambda result, done, total: on_event(CaseDone(result, done, total)))
    score = overall(results)
    checks = check_scores(results)
    verdict = gate(Measured(score, checks) if score else None, config.threshold, before, demo=config.demo)
    unverified = next((result.why for result in results if result.passed is None), "")
    record: dict[str, Any] = {
        **provenance("eval"),
        "suite": suite.name,
        "label": config.label,
        **asked,
        "demo": config.demo,
        "adapter": config.adapter.name if config.adapter else "",
        "adapter_sha256": sha256_of(config.adapter / WEIGHTS) if config.adapter else "",
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


def _measured_in(path: Path, asked: dict[str, Any]) -> Measured | None:
    """The score and checks of an earlier result, None when it was unverified or asked otherwise."""
    record = read_json(path, "the earlier result")
    value = record.get("score")
    same = all(record.get(key) == wanted for key, wanted in asked.items())
    if not value or not same:
        return None
    checks = {name: Score.model_validate(share) for name, share in record.get("checks", {}).items()}
    return Measured(Score.model_validate(value), checks)
