"""Adapters for people: a few lines on what one is, one table row for each target; and the same as JSON."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import out, plain, size

if TYPE_CHECKING:
    from afs_mlx.core.paths import Workspace
    from afs_mlx.engine.adapters.comparison import Comparison, LayerDifference
    from afs_mlx.engine.adapters.inspection import LayerFacts
    from afs_mlx.pipelines.inspect_adapters import Inspection

SHOWN_PATHS = 8


def show_inspection(found: "Inspection", all_layers: bool, workspace: "Workspace") -> None:
    """Settings, base, provenance, then the layers."""
    adapter, layers = found.adapter, found.layers
    kind = f"{adapter.kind} {'DoRA' if adapter.dora else 'LoRA'}{' (rsLoRA)' if adapter.rslora else ''}"
    zero = [layer.path for layer in layers if layer.zero]
    total = math.hypot(*(layer.norm for layer in layers))
    dtypes = ", ".join(sorted({tensor.dtype for tensor in adapter.tensors}))
    parameters = sum(tensor.size for tensor in adapter.tensors)
    own = {(layer.rank, layer.scale) for layer in adapter.layers.values()}
    differ = f"; {len(own)} pairs of rank and scale, by layer" if len(own) > 1 else ""
    lines = [
        ("adapter", f"{workspace.shown(adapter.folder.resolve())}: {kind}"),
        (
            "rank",
            f"{adapter.rank}, alpha {adapter.alpha:g}, scale {adapter.scale:g}, dropout {adapter.dropout:g}{differ}",
        ),
        ("targets", ", ".join(adapter.targets)),
        ("blocks", f"{ranges(adapter.blocks) or 'none'}; {len(layers)} layers"),
        (
            "numbers",
            f"{parameters:,} parameters in {len(adapter.tensors)} tensors, {dtypes}, {size(adapter.size_bytes)}",
        ),
        ("base", _base(found)),
        *_provenance(found),
        ("‖ΔW‖", f"{total:.4g} over all layers; {_zero(zero)}"),
    ]
    if adapter.dora:
        lines.append(("", "of the low-rank part; what DoRA's magnitudes add to it depends on the base's weights"))
    if adapter.beside:
        lines.append(("beside", f"{len(adapter.beside)} tensors trained whole: {_some(list(adapter.beside))}"))
    _show_lines(lines)
    out().print()
    if all_layers:
        show_rows(
            ["layer", "(out, in)", "norm", "effective rank", "largest σ"],
            [[x.path, str(x.shape), f"{x.norm:.4g}", f"{x.effective_rank:.2f}", f"{x.largest:.4g}"] for x in layers],
        )
    else:
        show_rows(
            ["target", "layers", "zero", "norm: least", "median", "most", "effective rank"],
            [_target_row(target, list(group)) for target, group in _by_target(layers)],
        )


def inspection_json(found: "Inspection") -> dict[str, Any]:
    """Everything, every layer."""
    adapter = found.adapter
    return {
        "folder": str(adapter.folder),
        "kind": adapter.kind,
        "type": "DoRA" if adapter.dora else "LoRA",
        **{key: getattr(adapter, key) for key in ("rank", "alpha", "scale", "rslora", "dropout")},
        "targets": list(adapter.targets),
        "blocks": list(adapter.blocks),
        "parameters": sum(tensor.size for tensor in adapter.tensors),
        "tensors": len(adapter.tensors),
        "dtypes": sorted({tensor.dtype for tensor in adapter.tensors}),
        "size_bytes": adapter.size_bytes,
        "beside": list(adapter.beside),
        "origin": adapter.origin,
        "base": vars(found.base),
        "provenance": found.provenance,
        "norm": math.hypot(*(layer.norm for layer in found.layers)),
        "zero_layers": [layer.path for layer in found.layers if layer.zero],
        "layers": [
            {**vars(layer), "rank": own.rank, "scale": own.scale, "zero": layer.zero}
            for layer, own in zip(found.layers, adapter.layers.values(), strict=True)
        ],
    }


def show_comparison(found: "Comparison", all_layers: bool) -> None:
    """The verdict first, then what differs."""
    out().print(_verdict(found), style="bold", markup=False)
    _show_lines([(name, f"{_setting(a)} → {_setting(b)}") for name, (a, b) in found.settings.items()])
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            zero = sum(not norm for norm in only.values())
            words = f"{len(only)} layers{f', {zero} of them zero' if zero else ''}: {_some(list(only))}"
            _show_lines([(f"only {name}", words)])
    if found.bit_equal:
        return
    out().print()
    if all_layers:
        show_rows(
            ["layer", "‖ΔW‖ of A", "of B", "difference", "cosine"],
            [
                [x.path, f"{x.norm_a:.4g}", f"{x.norm_b:.4g}", _share(x.relative), _cosine(x.cosine)]
                for x in found.layers
            ],
        )
    else:
        show_rows(
            ["target", "layers", "equal", "difference: median", "most", "cosine: least", "median"],
            [_difference_row(target, list(group)) for target, group in _by_target(found.layers)],
        )


def comparison_json(found: "Comparison") -> dict[str, Any]:
    """Everything, every layer; what is infinite or undefined is null."""
    layers = [vars(layer) | {"same": layer.same, "magnitude": _finite(layer.magnitude)} for layer in found.layers]
    return {
        "identical": found.bit_equal,
        "same_update": found.same,
        "relative_difference": found.relative,
        "cosine": found.cosine,
        "settings": {name: {"a": a, "b": b} for name, (a, b) in found.settings.items()},
        "only_a": found.only_a,
        "only_b": found.only_b,
        "layers": layers,
    }


def show_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table, never cut to the terminal's width; cells may come from a file."""
    cells = [list(headings), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        out().print(line, style="" if number else "bold", markup=False)


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3, 5."""
    runs = []
    for _, group in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(runs)


def _show_lines(lines: Iterable[tuple[str, str]]) -> None:
    for name, text in lines:
        out().print(f"{name:<13}{plain(text)}", markup=False)


def _base(found: "Inspection") -> str:
    base = found.base
    named = f" (named {base.named})" if base.named not in ("", base.id) else ""
    weights = f" {base.weights_sha256[:12]}" if base.weights_sha256 else ""
    return f"{base.id or base.named or 'unknown'}{named if base.id else ''}: {base.certainty}{weights}"


def _provenance(found: "Inspection") -> list[tuple[str, str]]:
    """When and by what, from which data, by which code."""
    record = found.provenance
    if not record:
        return [("made", f"{found.adapter.origin or 'unknown'}; there is no run.json")]
    code, packages = record.get("code") or {}, record.get("packages") or {}
    when = record.get("finished_at") or record.get("made_at") or ""
    lines = [("made", f"{when} by {record.get('made_by', 'unknown')} {record.get('status', '')}".strip())]
    if isinstance(code, dict) and code.get("commit"):
        lines.append(("code", f"{str(code['commit'])[:12]}{' with local changes' if code.get('dirty') else ''}"))
    if isinstance(packages, dict) and packages:
        lines.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)))
    lines += [("data", text) for text in _data(record)]
    verified = record.get("verification")
    if isinstance(verified, dict) and "largest_difference" in verified:
        lines.append(
            ("verified", f"logits within {_short(verified['largest_difference'])} of {verified.get('reference')}")
        )
    return lines


def _data(record: dict[str, Any]) -> list[str]:
    """Each input file with its hash; records of several shapes hold them."""
    entries = record.get("inputs") or record.get("data") or record.get("parent") or []
    if not isinstance(entries, list):
        entries = [entries] if not isinstance(entries, dict) or "file" in entries else list(entries.values())
    files = [entry for value in entries for entry in (value if isinstance(value, list) else [value])]
    return [
        f"{entry['file']}{f', {entry["rows"]} rows' if 'rows' in entry else ''}, sha256 {str(entry.get('sha256'))[:12]}"
        for entry in files
        if isinstance(entry, dict) and "file" in entry
    ]


def _zero(paths: list[str]) -> str:
    return f"{len(paths)} zero: {_some(paths)}" if paths else "no layer is zero"


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN_PATHS} more" if len(paths) > SHOWN_PATHS else ""
    return ", ".join(paths[:SHOWN_PATHS]) + more


def _by_target[Row: ("LayerFacts", "LayerDifference")](layers: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    rows: dict[str, list[Row]] = {}
    for layer in layers:
        rows.setdefault(layer.target, []).append(layer)
    return sorted(rows.items())


def _target_row(target: str, layers: "list[LayerFacts]") -> list[str]:
    """Extremes of the layers that add something, each with its block."""
    trained = [layer for layer in layers if not layer.zero]
    row = [target, str(len(layers)), str(len(layers) - len(trained))]
    if not trained:
        return [*row, *["-"] * 4]
    by_norm = sorted(trained, key=lambda layer: layer.norm)
    ranks = sorted(layer.effective_rank for layer in trained)
    return [
        *row,
        f"{by_norm[0].norm:.4g}{_at(by_norm[0].block)}",
        f"{median(layer.norm for layer in trained):.4g}",
        f"{by_norm[-1].norm:.4g}{_at(by_norm[-1].block)}",
        f"{ranks[0]:.2f} to {ranks[-1]:.2f}",
    ]


def _difference_row(target: str, layers: "list[LayerDifference]") -> list[str]:
    def relative(layer: "LayerDifference") -> float:
        return math.inf if layer.relative is None else layer.relative

    most = max(layers, key=relative)
    cosines = [(layer.cosine, layer.block) for layer in layers if layer.cosine is not None]
    least = min(cosines, default=None, key=lambda pair: pair[0])
    return [
        target,
        str(len(layers)),
        str(sum(layer.same for layer in layers)),
        _share(median(relative(layer) for layer in layers)),
        f"{_share(most.relative)}{_at(most.block)}",
        f"{_cosine(least[0])}{_at(least[1])}" if least else "-",
        _cosine(median(cosine for cosine, _ in cosines)) if cosines else "-",
    ]


def _verdict(found: "Comparison") -> str:
    if found.bit_equal:
        return f"identical: the same numbers in the same {len(found.layers)} layers"
    if found.same:
        return "the same change to the model, up to float32 rounding; the numbers differ"
    cosine = "" if found.cosine is None else f", cosine {_cosine(found.cosine)}"
    return f"different: all layers together by {_share(found.relative)} of A{cosine}"


def _setting(value: Any) -> str:
    if isinstance(value, tuple):
        numbers = all(isinstance(item, int) for item in value)
        return ranges(value) if numbers else ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or "not recorded"


def _share(value: float | None) -> str:
    return "∞" if value is None or value == math.inf else f"{100 * value:.3g} %"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _at(block: int | None) -> str:
    return "" if block is None else f" @{block}"


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _short(number: object) -> str:
    return f"{number:.1e}" if isinstance(number, float) else str(number)
