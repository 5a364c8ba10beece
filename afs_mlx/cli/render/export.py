"""The checks of an exported file on stderr, one line each, as they end."""

from afs_mlx.cli.render.console import duration, err, notice, plain
from afs_mlx.schema.verification import Check, Verification, Verify

STYLES = {"passed": "green", "failed": "red", "reported": "cyan", "not run": "yellow"}
NAME_WIDTH = 20
STATUS_WIDTH = 10
REASON_CHARACTERS = 200


class ChecksView:
    """Call it with each check; `end` says what was left out."""

    def __init__(self, verify: Verify) -> None:
        self._verify, self._begun = verify, False

    def __call__(self, check: Check) -> None:
        """One line; the first has a heading, which says how much is checked."""
        if not self._begun:
            self._begun = True
            err().print(f"  verify ({self._verify})", markup=False)
        err().print(f"    {check.name:<{NAME_WIDTH}}", end="", markup=False)
        err().print(f"{check.status:<{STATUS_WIDTH}}", end="", style=STYLES[check.status], markup=False)
        err().print(words(check), markup=False)

    def end(self, verification: Verification | None) -> None:
        """What the person has to know beyond the lines."""
        if verification is None:
            notice("the file was not verified (--no-verify)")
            return
        skipped = [check for check in verification.checks if check.status == "not run"]
        if skipped:
            names = ", ".join(check.name for check in skipped)
            notice(f"not run: {names}: {skipped[0].reason}")
        by = f" with {verification.consumer}" if verification.consumer else ""
        err().print(f"  verified in {duration(verification.elapsed_s)}{by}", markup=False)


def words(check: Check) -> str:
    """The figures that matter of one check, and why it failed."""
    if check.status == "not run":
        return ""  # once for all of them, at the end
    said = "; ".join(part for part in (_figures(check), *check.differences) if part)
    if check.reason:
        reason = plain(check.reason).replace("\n", " ")
        short = reason if len(reason) <= REASON_CHARACTERS else f"{reason[:REASON_CHARACTERS]}…"
        return f"{short} ({said})" if said else short
    return said


def _figures(check: Check) -> str:
    f = check.figures
    match check.name:
        case "structure":
            return f"{f.get('tensors', 0)} tensors, {f.get('keys', 0)} keys"
        case "tensors" if "numbers" in f:
            return f"{f['numbers compared']:,} of {f['numbers']:,} numbers within what the type rounds"
        case "tokens":
            return f"{f.get('strings', 0)} strings, {f.get('different', 0)} different"
        case "chat template" if f:
            return f"{f['conversations']} conversations, {f['different']} different"
        case "log-probabilities" if "mean" in f:
            return (
                f"|Δ log p| mean {f['mean']:.2g} (≤ {f['tolerated mean']:g}), largest {f['largest']:.2g} "
                f"(≤ {f['tolerated largest']:g}) over the {f['top tokens']} top tokens of {f['places']} places"
            )
        case "greedy" if "prompts" in f:
            return (
                f"{f['prompts']} prompts × {f['tokens each']} tokens: {f['identical']} identical, "
                f"{f['equal within rounding']} equal within rounding, {f['different']} different"
            )
    return ", ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in f.items()
    )
