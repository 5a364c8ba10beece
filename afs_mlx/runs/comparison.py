"""Several runs side by side: what was set otherwise, what came of it, and what may be said of that.

A loss is a mean over certain tokens under a certain tokenizer: it compares only over the same validation rows and base.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afs_mlx.runs.overview import Overview, label
from afs_mlx.runs.plots.curves import mean

EQUAL_SHARE = 0.01  # best losses closer than this are called equal; another seed moves them by as much
BASE_SHARE = 0.01  # the same base on the same rows gives the same loss, but for the arithmetic's type
NOTABLE_RATE = 1.05
TRAILING_STEPS = 10
MOST_ROWS = 8
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class AtStep:
    """Losses at one step, by run. `train` is the mean over the TRAILING_STEPS steps up to it."""

    step: int
    train: tuple[float | None, ...]
    valid: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """`settings` are keys with a value for each run, only where they differ; `obstacles`: why losses do not compare."""

    runs: tuple[Overview, ...]
    settings: Mapping[str, tuple[Any, ...]]
    obstacles: tuple[str, ...]
    caveats: tuple[str, ...]
    at_steps: tuple[AtStep, ...]
    verdict: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether one validation loss may be held against another."""
        return not self.obstacles


def compare(runs: Sequence[Overview]) -> Comparison:
    """Two runs or more. Says nothing that the records do not support."""
    obstacles, caveats = _obstacles(runs), _caveats(runs)
    return Comparison(
        runs=tuple(runs),
        settings=differences([settings_of(overview) for overview in runs]),
        obstacles=tuple(obstacles),
        caveats=tuple(caveats),
        at_steps=tuple(_at_steps(runs)),
        verdict=tuple(_verdict(runs, obstacles)),
    )


def letter(number: int) -> str:
    """What the run with this number is called: A, B, C."""
    return chr(ord("A") + number)


def settings_of(overview: Overview) -> dict[str, Any]:
    """What a person chose or brought, under dotted keys: recipe, base, data, system text, code, packages, machine."""
    record = overview.run.record
    data = table(record, "data")
    code = table(record, "code")
    commit = str(code.get("commit") or "")[:12]
    return {
        "expert": label(overview.run),
        **flat(table(record, "recipe"), "recipe."),
        "base": overview.run.base or None,
        "base weights": str(table(record, "base").get("weights_sha256") or "")[:12] or None,
        **{f"data {entry['file']}": f"sha256 {str(entry.get('sha256'))[:12]}" for entry in data_files(record)},
        **{f"data.{key}": data[key] for key in ("seed", "valid_share", "train_rows", "valid_rows") if key in data},
        "system text": record.get("system"),
        "code": f"{commit}{' with local changes' if code.get('dirty') else ''}" or None,
        **{f"{name} version": version for name, version in flat(table(record, "packages"), "").items()},
        "processor": table(record, "machine").get("processor"),
    }


def differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """The keys whose values are not the same everywhere; None where a run does not have one."""
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = {key: tuple(one.get(key) for one in settings) for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def flat(value: Mapping[str, Any], above: str) -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{above}{key}.") if isinstance(inner, dict) and inner else {f"{above}{key}": inner}
    return found


def table(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table of a record, empty where there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def data_files(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The input files that a run recorded, each with `file` and `sha256`."""
    inputs = table(record, "data").get("inputs") or record.get("inputs")
    entries = inputs if isinstance(inputs, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("file"), str)]


def _obstacles(runs: Sequence[Overview]) -> list[str]:
    records = [overview.run.record for overview in runs]
    found = []
    bases = [(o.run.base, table(o.run.record, "base").get("weights_sha256")) for o in runs]
    if len({name for name, _ in bases}) > 1:
        found.append(f"other base ({', '.join(name or NOT_RECORDED for name, _ in bases)})")
    elif not all(name or weights for name, weights in bases):
        found.append("the base is not recorded")
    elif len({str(weights) for _, weights in bases if weights}) > 1:
        found.append(f"other weights of the base {bases[0][0]}")
    rows = [_validation_rows(record) for record in records]
    if not all(rows):
        found.append("the data is not recorded for every run")
    elif any(value != rows[0] for value in rows):
        same = all(_files(record) == _files(records[0]) for record in records)
        found.append("another split of the same data" if same else "other data")
    lengths = [_length_policy(record) for record in records]
    if any(policy != lengths[0] for policy in lengths):
        found.append("rows that are too long are handled otherwise")
    return found or _other_measure(runs)


def _other_measure(runs: Sequence[Overview]) -> list[str]:
    """What nothing recorded explains: the same base on the same rows and text, and another loss."""
    losses = [loss for overview in runs if (loss := overview.figures.base_valid_loss) is not None]
    if len({str(o.run.record.get("system")) for o in runs}) > 1 or not losses:
        return []
    if max(losses) - min(losses) <= BASE_SHARE * min(losses):
        return []
    shown = " and ".join(f"{loss:.4f}" for loss in (min(losses), max(losses)))
    return [f"the same base came to {shown} on the same rows, so the loss was measured otherwise"]


def _caveats(runs: Sequence[Overview]) -> list[str]:
    records = [overview.run.record for overview in runs]
    found = []
    if not all(table(record, "base").get("weights_sha256") for record in records):
        found.append("not every run records the hash of its base's weights")
    systems = {str(record.get("system")) for record in records}
    losses = [o.figures.base_valid_loss for o in runs if o.figures.base_valid_loss is not None]
    if len(systems) > 1:
        found.append("the system text differs, and with it the loss of the base")
    elif not _obstacles(runs) and losses and max(losses) - min(losses) > BASE_SHARE * min(losses):
        shown = " to ".join(f"{loss:.4f}" for loss in (min(losses), max(losses)))
        found.append(
            f"the loss of the same base on the same rows is not the same ({shown}): something else differs too"
        )
    keys = ("batch_tokens", "accumulation")
    if any(table(r, "recipe").get(key) != table(records[0], "recipe").get(key) for r in records for key in keys):
        found.append("a step is not as many tokens in each run, so equal steps are not equal work")
    if any(_files(record) != _files(records[0]) for record in records) or len({str(_seed(r)) for r in records}) > 1:
        found.append("training losses are over other rows")
    rates = [rate for overview in runs if (rate := overview.figures.tokens_per_s)]
    if rates and max(rates) > NOTABLE_RATE * min(rates):
        machines = {str(table(record, "machine").get("processor")) for record in records}
        where = "on one machine side by side" if len(machines) == 1 else "on one kind of machine"
        found.append(f"speeds were not measured {where}, so they show little of what the settings do")
    return found


def _verdict(runs: Sequence[Overview], obstacles: Sequence[str]) -> list[str]:
    said = []
    if obstacles:
        said.append(f"losses are not comparable: {'; '.join(obstacles)}")
    else:
        said += _ranking(runs)
    said += [
        f"{letter(number)} is not done ({overview.state}, {_progress(overview)}): what it comes to is open"
        for number, overview in enumerate(runs)
        if overview.state in ("running", "crashed", "failed", "interrupted")
    ]
    said += [
        f"no step of {letter(number)} was better than its base"
        for number, overview in enumerate(runs)
        if overview.figures.best_step == 0 and overview.figures.steps
    ]
    return said


def _ranking(runs: Sequence[Overview]) -> list[str]:
    known = [(loss, number) for number, o in enumerate(runs) if (loss := o.figures.best_valid_loss) is not None]
    if len(known) < len(runs):
        names = ", ".join(letter(number) for number, o in enumerate(runs) if o.figures.best_valid_loss is None)
        return [f"{names}: no validation loss is known, so there is nothing to compare"]
    known.sort()
    (lowest, first), (highest, last) = known[0], known[-1]
    if highest - lowest <= EQUAL_SHARE * lowest:
        return [
            f"as good as equal: best validation losses within {EQUAL_SHARE:.0%} "
            f"({letter(first)} {lowest:.4f}, {letter(last)} {highest:.4f})"
        ]
    others = ", ".join(f"{letter(number)} {loss:.4f} (+{(loss - lowest) / lowest:.1%})" for loss, number in known[1:])
    best_step = runs[first].figures.best_step
    return [
        f"{letter(first)} has the lowest validation loss: {lowest:.4f} at step {best_step}; {others}",
        "each is one run: how far another seed would move these losses is not known, and a lower loss is not yet "
        "a better answer (afs-mlx eval says that)",
    ]


def _at_steps(runs: Sequence[Overview]) -> list[AtStep]:
    """Steps that all runs have: their common validations, else a few training steps."""
    trained = [{s.step: s.loss for s in o.history.steps} for o in runs]
    validated = [{v.step: v.loss for v in o.history.validations if math.isfinite(v.loss)} for o in runs]
    common = sorted(set.intersection(*(set(losses) for losses in validated)))
    if common in ([], [0]):
        common += sorted(set.intersection(*(set(losses) for losses in trained)) - {0})
    number = min(MOST_ROWS, len(common))
    chosen = [common[i * (len(common) - 1) // max(1, number - 1)] for i in range(number)]
    return [
        AtStep(step, tuple(_trailing(losses, step) for losses in trained), tuple(v.get(step) for v in validated))
        for step in chosen
    ]


def _trailing(losses: Mapping[int, float], step: int) -> float | None:
    if step not in losses:
        return None
    last = [losses[s] for s in range(max(1, step - TRAILING_STEPS + 1), step + 1) if s in losses]
    finite = [loss for loss in last if math.isfinite(loss)]
    return mean(finite) if finite else None


def _validation_rows(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What settles which rows are validated on; empty when it is not recorded."""
    own = [entry for entry in data_files(record) if entry["file"] == "valid.jsonl"]
    if own:
        return tuple(str(entry.get("sha256")) for entry in own)
    data = table(record, "data")
    files = _files(record)
    return (*files, *(str(data.get(key)) for key in ("seed", "valid_share"))) if files else ()


def _files(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(str(entry["sha256"]) for entry in data_files(record) if entry.get("sha256")))


def _seed(record: Mapping[str, Any]) -> object:
    return table(record, "data").get("seed")


def _length_policy(record: Mapping[str, Any]) -> tuple[object, ...]:
    """Two limits are the same where every row was within each: that is what `error` means."""
    recipe = table(record, "recipe")
    policy = recipe.get("over_long", "error")
    return ("error",) if policy == "error" else (policy, recipe.get("max_seq_tokens"))


def _progress(overview: Overview) -> str:
    total = overview.figures.total_steps
    return f"step {overview.figures.steps}{f' of {total}' if total else ''}"
