"""The gate: a model that got worse, or is not good enough, is not shipped by accident."""

from afs_mlx.core.config import StrictModel
from afs_mlx.schema.score import Score


class Verdict(StrictModel):
    """Whether a result passes, and the reason in words."""

    passed: bool
    reason: str
    threshold: float
    before: float | None


def gate(score: Score | None, threshold: float, before: Score | None, *, demo: bool) -> Verdict:
    """Pass when the score reaches the threshold and is no lower than `before`.

    A demo run, made on the embedded base, has to beat what stood before it and nothing more: the threshold is meant
    for the real base. A demo run with nothing before it and an unverified result never pass.
    """
    earlier = before.value if before else None

    def verdict(passed: bool, reason: str) -> Verdict:
        return Verdict(passed=passed, reason=reason, threshold=threshold, before=earlier)

    if score is None:
        return verdict(False, "not verified")
    if earlier is not None and score.value < earlier:
        return verdict(False, f"{score.value:.2f} is below the {earlier:.2f} before it")
    if demo and earlier is None:
        return verdict(False, "demo: there is no score of the base to be held against")
    if demo and earlier is not None:
        improved = score.value > earlier
        said = f"{score.value:.2f} is {'above' if improved else 'not above'} the base's {earlier:.2f}"
        return verdict(improved, f"demo: {said}; the threshold {threshold:.2f} is for the real base")
    if score.value < threshold:
        return verdict(False, f"{score.value:.2f} is below the threshold {threshold:.2f}")
    return verdict(True, f"{score.value:.2f} reaches the threshold {threshold:.2f}")
