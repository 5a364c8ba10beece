"""The gate: a model that got worse, or is not good enough, is not shipped by accident."""

from collections.abc import Mapping
from dataclasses import dataclass

from afs_mlx.core.config import StrictModel
from afs_mlx.schema.score import Score


class Verdict(StrictModel):
    """Whether a result passes, and the reason in words."""

    passed: bool
    reason: str
    threshold: float
    before: float | None


@dataclass(frozen=True)
class Measured:
    """A score and the share of cases that met each check, in the order in which they are made."""

    score: Score
    checks: Mapping[str, Score]


def gate(after: Measured | None, threshold: float, before: Measured | None, *, demo: bool) -> Verdict:
    """Pass when the score reaches the threshold and is no lower than `before`.

    A demo run, made on the embedded base, has to beat what stood before it and nothing more: the threshold is meant
    for the real base. Where both score the same, it is the last check in which they differ that decides: a model that
    small may answer in form long before it answers rightly. A demo run with nothing before it and an unverified result
    never pass.
    """
    earlier = before.score.value if before else None

    def verdict(passed: bool, reason: str) -> Verdict:
        return Verdict(passed=passed, reason=reason, threshold=threshold, before=earlier)

    if after is None:
        return verdict(False, "not verified")
    value = after.score.value
    if before is not None and value < before.score.value:
        return verdict(False, f"{value:.2f} is below the {before.score.value:.2f} before it")
    if demo and before is None:
        return verdict(False, "demo: there is no score of the base to be held against")
    if demo and before is not None:
        improved, said = _demo(after, before)
        return verdict(improved, f"demo: {said}; the threshold {threshold:.2f} is for the real base")
    if value < threshold:
        return verdict(False, f"{value:.2f} is below the threshold {threshold:.2f}")
    return verdict(True, f"{value:.2f} reaches the threshold {threshold:.2f}")


def _demo(after: Measured, before: Measured) -> tuple[bool, str]:
    """Whether a demo got further than its base, and how that is said."""
    value = after.score.value
    if value > before.score.value:
        return True, f"{value:.2f} is above the base's {before.score.value:.2f}"
    for name in reversed(list(after.checks)):
        share = after.checks[name].value
        base_share = before.checks[name].value if name in before.checks else 0.0
        if share != base_share:
            said = f"{value:.2f} is the base's too, {name.replace('_', ' ')} {share:.2f} is"
            return share > base_share, f"{said} {'above' if share > base_share else 'below'} its {base_share:.2f}"
    return False, f"{value:.2f} is not above the base's {before.score.value:.2f}"
