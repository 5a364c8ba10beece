"""llama.cpp's numbers beside mlx's: log-probabilities, and the tokens that greedy decoding takes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from afs_mlx.engine.gguf.verification.llama import Llama, LlamaError
from afs_mlx.engine.gguf.verification.prompts import QUESTIONS
from afs_mlx.engine.gguf.verification.reference import Rows, log_probabilities, on_cpu
from afs_mlx.engine.gguf.verification.tolerances import TOP, Tolerance
from afs_mlx.schema.verification import Check

SHOWN = 3


@dataclass(frozen=True)
class Effort:
    """How much is compared: strings to tokenise, prompts, tokens that each prompt continues for, and the places of each
    where all log-probabilities are.
    """

    strings: int
    prompts: int
    tokens: int
    places: int


@dataclass
class Divergence:
    """Where the two choose differently first: by how much mlx prefers its own token, infinite for an end."""

    prompt: int
    token: int
    gap: float
    text: str


@dataclass
class Measured:
    """What one pass over all prompts found. Differences are |Δ log p|, (places × TOP)."""

    prompts: int = 0
    differences: list[float] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    largest_of_all: float = 0.0  # over the whole vocabulary
    divergence_nats: list[float] = field(default_factory=list)  # KL(mlx‖llama.cpp) of each place
    same_first: int = 0  # places where both find the same token most probable
    places: int = 0
    tokens: int = 0
    unfit: list[str] = field(default_factory=list)  # NaN and the like

    @property
    def largest(self) -> float:
        return max(self.differences, default=math.nan)

    @property
    def mean(self) -> float:
        return sum(self.differences) / len(self.differences) if self.differences else math.nan


def measure(llama: Llama, folder: Path, tokenizer: TokenizerWrapper, effort: Effort, context_tokens: int) -> Measured:
    """Let llama.cpp continue every prompt greedily, then read mlx's log-probabilities along the same tokens.

    Raises LlamaError, and AfsError where mlx cannot load the folder.
    """
    ends = set(tokenizer.eos_token_ids)
    prompts = [_encoded(tokenizer, question) for question in QUESTIONS[: effort.prompts]]
    prompts = [prompt for prompt in prompts if len(prompt) + effort.tokens <= context_tokens]
    answers = [_greedy(llama, prompt, effort.tokens) for prompt in prompts]
    found = Measured(prompts=len(prompts))
    # The last token is left out: what follows it is not compared.
    sequences = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    with on_cpu():
        rows = log_probabilities(folder, sequences, [len(prompt) - 1 for prompt in prompts])
        for number, (prompt, answer, expected) in enumerate(zip(prompts, answers, rows, strict=True)):
            found.tokens += len(answer)
            divergence = _divergence(number, answer, expected, ends, effort.tokens)
            if divergence is not None:
                found.divergences.append(divergence)
            for place in _spread(len(answer), effort.places):
                _compare(found, _llama_row(llama, prompt + answer[:place], expected.shape[1]), expected[place])
    return found


def check_log_probabilities(found: Measured, tolerance: Tolerance) -> Check:
    """The mean and the largest |Δ log p| over the top tokens, within the type's tolerance; no NaN anywhere."""
    figures: dict[str, float | int | str] = {
        "places": found.places,
        "top tokens": TOP,
        "mean": _rounded(found.mean),
        "largest": _rounded(found.largest),
        "tolerated mean": tolerance.mean,
        "tolerated largest": tolerance.largest,
        "largest of the vocabulary": _rounded(found.largest_of_all),
        "mean KL": _rounded(sum(found.divergence_nats) / max(1, len(found.divergence_nats))),
        "same first choice": found.same_first,
    }
    reasons = list(dict.fromkeys(found.unfit))[:SHOWN]
    if not reasons and not found.mean <= tolerance.mean:  # also for NaN
        reasons.append(f"|Δ log p| is {found.mean:.4g} on average, {tolerance.mean:g} are tolerated")
    if not reasons and not found.largest <= tolerance.largest:
        reasons.append(f"|Δ log p| is up to {found.largest:.4g}, {tolerance.largest:g} are tolerated")
    status = "failed" if reasons else "passed"
    return Check(name="log-probabilities", status=status, reason="; ".join(reasons), figures=_finite(figures))


def check_greedy(found: Measured, tolerance: Tolerance, effort: Effort) -> Check:
    """The same tokens, or a first difference that rounding explains.

    Where mlx prefers its own token by less than twice the largest difference of log-probabilities, either choice is
    right; how often that was needed is a figure. Of quantised types it is only reported.
    """
    limit = 2 * found.largest
    close = [one for one in found.divergences if one.gap < limit]
    wrong = [one for one in found.divergences if not one.gap < limit]
    figures: dict[str, float | int | str] = {
        "prompts": found.prompts,
        "tokens each": effort.tokens,
        "tokens": found.tokens,
        "identical": found.prompts - len(found.divergences),
        "equal within rounding": len(close),
        "different": len(wrong),
    }
    if found.divergences:
        figures["mean token of the first difference"] = round(
            sum(one.token for one in found.divergences) / len(found.divergences), 1
        )
    shown = "; ".join(f"prompt {one.prompt + 1}, token {one.token + 1}: {one.text}" for one in wrong[:SHOWN])
    reason = f"{len(wrong)} of {found.prompts} prompts differ ({shown})" if wrong else ""
    if not tolerance.greedy:
        return Check(name="greedy", status="reported", reason=reason, figures=figures)
    return Check(name="greedy", status="failed" if wrong else "passed", reason=reason, figures=figures)


def _encoded(tokenizer: TokenizerWrapper, question: str) -> list[int]:
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": question}]
        return [int(n) for n in tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)]
    return [int(number) for number in tokenizer.encode(question)]


def _greedy(llama: Llama, prompt: Sequence[int], count: int) -> list[int]:
    body = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    tokens = [int(number) for number in llama.post("/completion", body)["tokens"]]
    if not tokens:
        raise LlamaError("answered nothing to a prompt")
    return tokens


def _llama_row(llama: Llama, tokens: Sequence[int], vocabulary: int) -> Rows:
    """llama.cpp's log-probabilities of all tokens at one place; NaN where it gives none."""
    body = {"prompt": list(tokens), "n_predict": 1, "temperature": 0, "n_probs": vocabulary}
    # The bias makes it choose a plain letter: it reports nothing for a token that ends within a character. What it
    # reports is from before the bias.
    body["logit_bias"] = [["a", 1000]]
    entries = llama.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
    row = np.full(vocabulary, np.nan, np.float32)
    for entry in entries:
        if entry["logprob"] is not None and 0 <= entry["id"] < vocabulary:
            row[entry["id"]] = entry["logprob"]
    return row


def _compare(found: Measured, row: Rows, expected: Rows) -> None:
    found.places += 1
    if not np.isfinite(expected).all():
        found.unfit.append("mlx's own log-probabilities are NaN or infinite")
        return
    missing = int(np.count_nonzero(~np.isfinite(row)))
    if missing:
        found.unfit.append(f"{missing} of {row.size} log-probabilities are NaN or missing")
        return
    difference = np.abs(row - expected)
    top = np.argpartition(expected, -TOP)[-TOP:]
    found.differences += [float(value) for value in difference[top]]
    found.largest_of_all = max(found.largest_of_all, float(difference.max()))
    found.divergence_nats.append(_kl(expected, row))
    found.same_first += int(row.argmax() == expected.argmax())


def _kl(expected: Rows, row: Rows) -> float:
    """KL(mlx‖llama.cpp) in nats."""
    wide = expected.astype(np.float64)
    return float(np.sum(np.exp(wide) * (wide - row)))


def _divergence(number: int, answer: Sequence[int], expected: Rows, ends: set[int], asked: int) -> Divergence | None:
    """The first token that mlx would not have chosen, or an end that only one of the two sees."""
    for place, (token, row) in enumerate(zip(answer, expected, strict=True)):
        choice = int(row.argmax())
        if choice != token:
            gap = float(row[choice] - row[token])
            return Divergence(number, place, gap, f"{token} instead of {choice}, which mlx prefers by {gap:.4f}")
        if token in ends and place < len(answer) - 1:
            return Divergence(number, place, math.inf, f"goes on after the end token {token}")
    if len(answer) < asked and answer[-1] not in ends:
        return Divergence(number, len(answer) - 1, math.inf, f"stops at {answer[-1]}, which is no end token")
    return None


def _spread(length: int, count: int) -> Iterable[int]:
    return sorted({number * length // count for number in range(count)})


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _finite(figures: dict[str, float | int | str]) -> dict[str, float | int | str]:
    return {
        name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
        for name, value in figures.items()
    }
