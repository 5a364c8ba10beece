"""Which layers a PEFT config means, with which rank and alpha: the rules of PEFT 0.21's tuners_utils, on names alone.

A config may come from anyone and PEFT's patterns are regular expressions, which can run for years on one name. Those
that are more than a name are matched in a process of its own, under a time limit.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from afs_mlx.core.errors import AfsError
from afs_mlx.core.process import run_limited
from afs_mlx.engine.adapters.format import BLOCK
from afs_mlx.engine.adapters.peft_config import CONFIG, PeftLora

NAME = re.compile(r"[A-Za-z0-9_.]+")
ALL_LINEAR = "all-linear"
TIMEOUT_S = 5.0
_MATCHER = """
import json, re
with open("question.json") as file:
    patterns, names = json.load(file)
answers = []
for pattern in patterns:
    try:
        compiled = re.compile(pattern)
    except Exception as error:
        answers.append(str(error) or type(error).__name__)
    else:
        answers.append([name for name in names if compiled.fullmatch(name)])
print(json.dumps(answers))
"""


def target_paths(settings: PeftLora, linears: Sequence[str], where: Path) -> set[str]:
    """Those of a base's linear layers that the config means."""
    named = {path for path in linears if not _is_named(path, settings.excludes)}
    if isinstance(settings.excludes, str) and settings.excludes:
        named -= matches([settings.excludes], linears, where)[0]
    named = {path for path in named if not any(f".{name}." in f".{path}." for name in settings.saved_modules)}
    if isinstance(settings.targets, str):
        if is_all_linear(settings):
            return named - {"lm_head"}
        return named & matches([settings.targets], linears, where)[0]
    return {path for path in named if _is_target(path, settings.targets, settings.layers)}


def is_all_linear(settings: PeftLora) -> bool:
    """Whether the targets are PEFT's word for every linear layer but the output's."""
    return isinstance(settings.targets, str) and settings.targets.lower() == ALL_LINEAR


def ranks_and_alphas(settings: PeftLora, paths: Sequence[str], where: Path) -> dict[str, tuple[int, float]]:
    """Each layer's rank and alpha: those of the first pattern that matches the path or its end, else the config's."""
    ranks = _by_pattern(settings.ranks, paths, where)
    alphas = _by_pattern(settings.alphas, paths, where)
    return {path: (int(ranks.get(path, settings.rank)), alphas.get(path, settings.alpha)) for path in paths}


def matches(patterns: Sequence[str], names: Iterable[str], where: Path) -> list[set[str]]:
    """For each pattern the names it matches whole. Raises AfsError for one that is no regex or takes too long."""
    question = json.dumps([list(patterns), list(names)])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "question.json").write_text(question, encoding="utf-8")
        done = run_limited(
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            cwd=Path(folder),
            timeout_s=TIMEOUT_S,
            cpu_s=int(TIMEOUT_S),
            memory_bytes=2**30,
            file_bytes=0,
            output_bytes=2**28,
        )
    shown = ", ".join(repr(pattern[:200]) for pattern in patterns[:3])
    if done.returncode or done.timed_out or done.truncated:
        raise AfsError(f"this pattern takes too long to match: {shown}", str(where / CONFIG), "list the layers by name")
    answers = json.loads(done.stdout)
    for pattern, answer in zip(patterns, answers, strict=True):
        if isinstance(answer, str):
            raise AfsError(f"{pattern[:200]!r} is no pattern: {answer}", str(where / CONFIG), "mend the config")
    return [set(answer) for answer in answers]


def _by_pattern[Number: (int, float)](
    table: tuple[tuple[str, Number], ...], paths: Sequence[str], where: Path
) -> dict[str, Number]:
    complex_ones = [pattern for pattern, _ in table if not NAME.fullmatch(pattern)]
    # PEFT asks re.match(rf"(.*\\.)?({pattern})$", path).
    found = matches([rf"(.*\.)?({pattern})$" for pattern in complex_ones], paths, where) if complex_ones else []
    matched = dict(zip(complex_ones, found, strict=True))
    numbers: dict[str, Number] = {}
    for pattern, number in reversed(table):
        hits = matched[pattern] if pattern in matched else {path for path in paths if _is_named(path, (pattern,))}
        numbers |= dict.fromkeys(hits, number)
    return numbers


def _is_target(path: str, targets: tuple[str, ...], layers: tuple[int, ...] | None) -> bool:
    """A whole path, or its end in the listed blocks."""
    if path in targets:
        return True
    block = BLOCK.fullmatch(path)
    if layers is not None and (block is None or int(block["layer"]) not in layers):
        return False
    return _is_named(path, targets)


def _is_named(path: str, names: tuple[str, ...] | str) -> bool:
    """Whether one of the names is the path or its end; a pattern names nothing here."""
    return not isinstance(names, str) and any(path == name or path.endswith(f".{name}") for name in names)
