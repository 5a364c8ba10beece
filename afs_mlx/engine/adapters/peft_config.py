"""PEFT's adapter_config.json: the settings that decide what a LoRA computes, and by name the ones that are refused.

Field meanings after PEFT 0.21's LoraConfig. Knows nothing of tensors.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import read_json

CONFIG = "adapter_config.json"

# Set to anything but empty, these change what the adapter computes.
REFUSED = {
    "fan_in_fan_out": "Conv1D layers are not supported",
    "layer_replication": "replicated layers are not supported: the base has other layers than the adapter expects",
    "target_parameters": "LoRA on bare parameters (mixture of experts) is not supported",
    "alora_invocation_tokens": "activated LoRA is not supported: it is switched on by tokens, not always on",
    "use_qalora": "QALoRA is not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "arrow_config": "Arrow routing is not supported",
    "kasa_config": "KaSA is not supported",
    "velora_config": "VeLoRA is not supported",
    "monteclora_config": "Monte Carlo LoRA is not supported",
}
# Other starts (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take a part out of the base; the adapter fits none on disk then.
SOUND_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
# Without effect on a finished adapter, or read below.
HARMLESS = {
    *("auto_mapping", "peft_version", "revision", "inference_mode", "megatron_config", "megatron_core", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices"),
}
MAX_PATTERNS = 4096


@dataclass(frozen=True)
class PeftLora:
    """A LoRA or DoRA as PEFT describes it.

    `targets` and `excludes` are names, or a regex (or "all-linear") as text; `layers` the blocks it is limited to, None
    for all; `ranks` and `alphas` hold what differs from `rank` and `alpha`, by PEFT's patterns. `saved_modules` were
    trained whole, of `token_rows` the embeddings of these tokens; `biases` says which ("none", "all", "lora_only").
    """

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    targets: tuple[str, ...] | str
    layers: tuple[int, ...] | None
    excludes: tuple[str, ...] | str
    base_name: str
    peft_version: str
    dora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    saved_modules: tuple[str, ...] = ()
    lora_bias: bool = False
    biases: str = "none"
    token_rows: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def scale(self) -> float:
        """What multiplies B·A where no pattern says otherwise."""
        return self.scale_of(self.rank, self.alpha)

    def scale_of(self, rank: int, alpha: float) -> float:
        """alpha / r, with rsLoRA alpha / √r (Kalajdzievski 2023)."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_peft_config(folder: Path) -> PeftLora:
    """Read a PEFT folder's config; raises one AfsError naming everything that is malformed or not supported."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise MissingError("there is no such adapter folder", str(folder), "check the path")
    if not path.is_file():
        raise MissingError(f"not a PEFT adapter: it has no {CONFIG}", str(folder), "copy the adapter's folder whole")
    value = read_json(path, "the adapter's config")
    if "peft_type" not in value:
        mlx = " (it looks like an MLX adapter, which needs no conversion)" if "lora_parameters" in value else ""
        raise AfsError(f"not PEFT's config: it has no peft_type{mlx}", str(path), "give the folder that PEFT saved")
    if found := [*_refusals(value), *_malformed(value)]:
        raise problems(found, "this adapter cannot be converted", str(path), "train or save it again as a plain LoRA")
    layers = value.get("layers_to_transform")
    targets, excludes = value["target_modules"], value.get("exclude_modules") or ()
    return PeftLora(
        rank=value["r"],
        alpha=float(value["lora_alpha"]),
        rslora=bool(value.get("use_rslora")),
        dropout=float(value.get("lora_dropout") or 0),
        targets=targets if isinstance(targets, str) else tuple(sorted(targets)),
        layers=(layers,) if isinstance(layers, int) else tuple(sorted(layers)) if layers else None,
        excludes=excludes if isinstance(excludes, str) else tuple(sorted(excludes)),
        base_name=value.get("base_model_name_or_path") or "",
        peft_version=str(value.get("peft_version") or ""),
        dora=bool(value.get("use_dora")),
        ranks=tuple((value.get("rank_pattern") or {}).items()),
        alphas=tuple((key, float(alpha)) for key, alpha in (value.get("alpha_pattern") or {}).items()),
        saved_modules=tuple(value.get("modules_to_save") or ()),
        lora_bias=bool(value.get("lora_bias")),
        biases=value.get("bias") or "none",
        token_rows=tuple((name, tuple(rows)) for name, rows in _token_rows(value).items()),
    )


def _token_rows(value: dict[str, Any]) -> dict[str, Any]:
    """Token numbers by module; PEFT takes a bare list for the input embeddings."""
    rows = value.get("trainable_token_indices") or {}
    return rows if isinstance(rows, dict) else {"embed_tokens": rows}


def _refusals(value: dict[str, Any]) -> list[str]:
    found = [f"{key}: {reason}" for key, reason in REFUSED.items() if value.get(key)]
    if value["peft_type"] != "LORA":
        found.append(f"peft_type: {value['peft_type']!r}, only LORA is supported")
    if value.get("task_type") not in (None, "CAUSAL_LM"):
        found.append(f"task_type: {value['task_type']!r}, only CAUSAL_LM is supported")
    start = value.get("init_lora_weights")
    start = "true" if start is None else str(start).lower()
    if start not in SOUND_STARTS:
        found.append(
            f"init_lora_weights: {start!r} changes the base's own weights, as far as we know; save it from PEFT "
            "with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    if value.get("layers_pattern") not in (None, "", [], "layers", ["layers"]):
        found.append(f"layers_pattern: {value['layers_pattern']!r}, the blocks of the bases we know are in 'layers'")
    known = HARMLESS | REFUSED.keys()
    return found + [f"{key}: unknown setting {inner!r}" for key, inner in value.items() if key not in known and inner]


def _malformed(value: dict[str, Any]) -> list[str]:
    found = []
    dropout = value.get("lora_dropout") or 0
    if not _is_rank(value.get("r")):
        found.append(f"r: {value.get('r')!r} is not a positive whole number")
    if not _is_alpha(value.get("lora_alpha")):
        found.append(f"lora_alpha: {value.get('lora_alpha')!r} is not a number other than 0")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        found.append(f"lora_dropout: {dropout!r} is not in [0, 1)")
    targets, layers = value.get("target_modules"), value.get("layers_to_transform")
    if not targets or not (isinstance(targets, str) or _is_list_of(str, targets)):
        found.append(f"target_modules: {targets!r} is neither names nor a pattern")
    excludes = value.get("exclude_modules") or []
    if not (isinstance(excludes, str) or _is_list_of(str, excludes)):
        found.append(f"exclude_modules: {excludes!r} is neither names nor a pattern")
    if layers is not None and type(layers) is not int and not _is_list_of(int, layers):
        found.append(f"layers_to_transform: {layers!r} is not a list of block numbers")
    if not isinstance(value.get("base_model_name_or_path") or "", str):
        found.append("base_model_name_or_path: not text")
    if not _is_list_of(str, value.get("modules_to_save") or []):
        found.append(f"modules_to_save: {value['modules_to_save']!r} is not a list of names")
    if value.get("bias") not in (None, "none", "all", "lora_only"):
        found.append(f"bias: {value['bias']!r} is none of 'none', 'all', 'lora_only'")
    for name, rows in _token_rows(value).items():
        if not _is_list_of(int, rows) or any(row < 0 for row in rows) or len(set(rows)) != len(rows):
            found.append(f"trainable_token_indices: {name} has no list of different token numbers")
    return found + _bad_patterns(value)


def _bad_patterns(value: dict[str, Any]) -> list[str]:
    """PEFT's two tables from a pattern for layers to a number."""
    found = []
    for name, fits, what in (
        ("rank_pattern", _is_rank, "a positive whole number"),
        ("alpha_pattern", _is_alpha, "a number other than 0"),
    ):
        table = value.get(name) or {}
        if not isinstance(table, dict):
            found.append(f"{name}: {table!r} is not a table")
        elif len(table) > MAX_PATTERNS:
            found.append(f"{name}: {len(table)} patterns, more than {MAX_PATTERNS}")
        else:
            found += [f"{name}.{key}: {number!r} is not {what}" for key, number in table.items() if not fits(number)]
    return found


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_alpha(value: Any) -> bool:
    return _is_number(value) and value != 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # false for NaN


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)
