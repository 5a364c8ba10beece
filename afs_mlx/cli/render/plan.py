"""How a forecast looks on a terminal, and the same as plain data for --json."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import duration, out, size

if TYPE_CHECKING:
    from afs_mlx.engine.training.planning.forecast import Forecast, Proposal
    from afs_mlx.pipelines.plan import PlanResult

SMALLEST = 0.01  # parts below this share of the whole are not shown
NAMES = {
    "resident": "base, adapter, optimizer",
    "kept outputs": "kept outputs of frozen blocks",
    "gradients": "gradients",
    "activations": "activations",
    "attention": "attention scores",
    "head": "logits",
}
VERDICTS = {
    "fits": "it fits",
    "tight": "it fits, but tightly: a forecast may be off by so much; close other programs",
    "swaps": "it does not fit in memory: it would swap and be many times slower",
    "impossible": "it cannot run here: that is more than memory and swap",
}


def show(result: "PlanResult") -> None:
    """Time, memory by part, what this machine has, the verdict, and settings to type."""
    found = result.forecast
    lines = [*_time(result), *_memory(found), *_machine(result), VERDICTS[found.verdict], *_proposals(result)]
    for line in lines:
        out().print(line, markup=False)


def as_json(result: "PlanResult") -> dict[str, Any]:
    """A forecast as plain data: bytes and seconds; null for a time that was not measured."""
    found, memory = result.forecast, asdict(result.memory)
    return {
        "base": result.base,
        "demo": result.demo,
        "verdict": found.verdict,
        "calibrated": result.calibrated,
        "probed_batches": result.probed,
        "optimizer_steps": result.optimizer_steps,
        "time_s": found.time_s if result.calibrated else None,
        "time_parts_s": dict(found.time_parts) if result.calibrated else None,
        "peak_bytes": found.peak_bytes,
        "needed_bytes": found.needed_bytes,
        "memory_parts_bytes": dict(found.memory_parts),
        "disk_bytes": found.disk_bytes,
        "machine": {**memory, "room": asdict(found.room)},
        "proposals": [
            {
                "settings": proposal.settings,
                "changes": dict(proposal.changes),
                "peak_bytes": proposal.peak_bytes,
                "needed_bytes": proposal.needed_bytes,
                "time_s": proposal.time_s if result.calibrated else None,
                "verdict": proposal.verdict,
                "alters_learning": proposal.alters_learning,
            }
            for proposal in found.proposals
        ],
    }


def _time(result: "PlanResult") -> list[str]:
    if not result.calibrated:
        return ["time     unknown: nothing that could be measured fits"]
    found = result.forecast
    parts = [
        f"{name} {duration(seconds)}"
        for name, seconds in sorted(found.time_parts.items(), key=lambda part: -part[1])
        if seconds >= SMALLEST * found.time_s
    ]
    steps = f"{result.optimizer_steps} step{'' if result.optimizer_steps == 1 else 's'}"
    return [f"time     about {duration(found.time_s)} for {steps} ({', '.join(parts)})"]


def _memory(found: "Forecast") -> list[str]:
    beside = found.needed_bytes - found.peak_bytes
    parts = {**found.memory_parts, "Python and the allocator": beside}
    shown = [
        f"  {size(part):>8}  {NAMES.get(name, name)}"
        for name, part in sorted(parts.items(), key=lambda part: -part[1])
        if part >= SMALLEST * found.needed_bytes
    ]
    disk = [f"  and {size(found.disk_bytes)} on disk for kept outputs"] if found.disk_bytes else []
    return [f"memory   {size(found.needed_bytes)} at most", *shown, *disk]


def _machine(result: "PlanResult") -> list[str]:
    memory, room = result.memory, result.forecast.room
    parts = [f"{size(memory.total_bytes)} memory{' (a limit of its control group)' if memory.limited else ''}"]
    parts.append(f"{size(room.available_bytes)} can be had")
    parts.append(f"{size(room.swap_bytes)} of swap left" if room.swap_bytes else "no swap")
    if room.gpu_bytes is not None:
        parts.append(f"Metal's working set {size(room.gpu_bytes)}")
    return [f"machine  {', '.join(parts)}"]


def _proposals(result: "PlanResult") -> list[str]:
    proposals = result.forecast.proposals
    if not proposals:
        fits = result.forecast.verdict == "fits"
        nothing = "nothing in the recipe brings it down far enough: a smaller base, shorter rows or another machine"
        return [] if fits else [nothing]
    return ["better:", *(f"  {_proposal(each, result)}" for each in proposals)]


def _proposal(proposal: "Proposal", result: "PlanResult") -> str:
    if result.calibrated:
        time = duration(proposal.time_s)
    else:
        time = f"{proposal.time_s / result.forecast.time_s:.1f} × the time"
    notes = ["tight"] * (proposal.verdict == "tight") + ["learns otherwise"] * proposal.alters_learning
    return f"{proposal.settings}  ({', '.join([size(proposal.needed_bytes), time, *notes])})"
