"""An event as its line of metrics.jsonl, under the field's names."""

from typing import Any

from afs_mlx.engine.training.events import (
    Resumed,
    RolledBack,
    Sampled,
    Stepped,
    StoppedEarly,
    TrainingEvent,
    Validated,
    Warned,
)


def metrics_line(event: TrainingEvent) -> dict[str, Any] | None:
    """The line's keys and values; None for what leaves no trace."""
    match event:
        case Stepped():
            return {
                "step": event.step,
                "epoch": event.epoch,
                "train/loss": event.loss,
                "learning_rate": event.learning_rate,
                "grad_norm": event.grad_norm,
                "supervised_tokens": event.supervised_tokens,
                "tokens_per_s": round(event.tokens_per_s, 3),
                "peak_memory_gb": round(event.peak_memory_gb, 4),
                "elapsed_s": round(event.elapsed_s, 3),
            }
        case Validated():
            return {"step": event.step, "valid/loss": event.loss, "elapsed_s": round(event.elapsed_s, 3)}
        case Sampled():
            answer = {"sample/question": event.question, "sample/answer": event.answer}
            return {"step": event.step, **answer, "sample/expected": event.expected}
        case RolledBack():
            what = {"rolled_back/from": event.failed_step, "rolled_back/reason": event.reason}
            return {"step": event.step, **what, "rate_factor": event.rate_factor}
        case Resumed():
            return {"step": event.step, "resumed": True, "elapsed_s": round(event.elapsed_s, 3)}
        case StoppedEarly():
            return {"step": event.step, "stopped_early": event.validations}
        case Warned():
            return {"warning": event.text}
    return None
