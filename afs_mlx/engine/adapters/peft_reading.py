"""A PEFT folder as layers with rank and scale, and whole tensors beside them; every problem of its files in one error.

Headers are read, numbers are not, unless there is something to complain of. The base is not needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.engine.adapters.layouts import PEFT_PREFIX
from afs_mlx.engine.adapters.peft_config import PeftLora, read_peft_config
from afs_mlx.engine.adapters.peft_files import FIX, LEAF, choose_adapter, read_weights, without_name
from afs_mlx.engine.adapters.peft_targets import ranks_and_alphas
from afs_mlx.engine.adapters.tensors import Tensor

STRANGERS = {
    "token_adapter": "trained token rows that the config does not name",
    "original_module": "a copy of the base's own weights; save it with save_pretrained",
    ".base_layer.weight": "the base's own embeddings, saved beside the LoRA; save with save_embedding_layers=False",
}
SIDES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_magnitude_vector.weight")
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
# Where PEFT keeps a whole tensor that was trained: within its wrapper, or under the module's own name.
WRAPPERS = (".modules_to_save", ".base_layer")


@dataclass(frozen=True)
class PeftLayer:
    """One adapted layer: A (r, in), B (out, r), DoRA's magnitudes (out,), and alpha / r or alpha / √r."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    rank: int
    alpha: float
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight it belongs to."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class PeftAdapter:
    """One adapter: its layers by path in the model, by full name the tensors trained whole, the biases of B.

    `embeddings` are LoRAs on them, A (r, vocabulary) and B (size, r); `rows` new embeddings of single tokens.
    `others` are adapters that lie in the same folder and were not meant.
    """

    folder: Path
    settings: PeftLora
    layers: dict[str, PeftLayer]
    whole: dict[str, Tensor]
    b_biases: dict[str, Tensor]
    embeddings: dict[str, PeftLayer]
    rows: dict[str, tuple[Tensor, tuple[int, ...]]]
    others: tuple[str, ...] = ()

    @property
    def named_tensors(self) -> dict[str, Tensor]:
        """All of them, by a name for messages."""
        adapted = self.layers | self.embeddings
        named = {f"{path}.lora_A": layer.a for path, layer in adapted.items()}
        named |= {f"{path}.lora_B": layer.b for path, layer in adapted.items()}
        named |= {f"{path}.lora_magnitude_vector": x.magnitude for path, x in adapted.items() if x.magnitude}
        named |= self.whole | {f"{path}.lora_B.bias": tensor for path, tensor in self.b_biases.items()}
        return named | {f"{path}.token_adapter": tensor for path, (tensor, _) in self.rows.items()}

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return list(self.named_tensors.values())

    def bad_numbers(self) -> list[str]:
        """NaN and infinities; reads every number."""
        return _bad_tensors(self.named_tensors)


def read_peft(folder: Path, name: str = "") -> PeftAdapter:
    """Read the adapter called `name` (see `choose_adapter`). Raises one AfsError for config and weights together."""
    chosen = choose_adapter(folder, name)
    errors: list[AfsError] = []
    settings = attempt(lambda: read_peft_config(chosen.path), errors)
    tensors = attempt(lambda: without_name(read_weights(chosen.path), name, chosen.path), errors)
    adapter = None
    if settings is not None and tensors is not None:
        known, read = settings, tensors
        adapter = attempt(lambda: _assembled(known, read, chosen.path), errors)
    elif tensors is not None and (found := _bad_tensors(tensors)):
        errors.append(problems(found, "these weights cannot be converted", str(chosen.path), FIX))
    if adapter is None:
        raise merged(errors)
    return replace(adapter, others=chosen.others)


def attempt[Result](read: Callable[[], Result], errors: list[AfsError]) -> Result | None:
    """What `read` returns; its AfsError is kept in `errors`, so that others can be found too."""
    try:
        return read()
    except AfsError as error:
        errors.append(error)
        return None


def merged(errors: list[AfsError]) -> AfsError:
    """One error of several; the only one as it is."""
    first = errors[0]
    if len(errors) == 1:
        return first
    lines = [line for error in errors for line in f"{error.where}: {error.what}".splitlines()]
    what = f"{len(errors)} things are wrong\n" + "\n".join(f"  {line}" for line in lines)
    return AfsError(what, "", "; ".join(dict.fromkeys(error.fix for error in errors if error.fix)), first.code)


@dataclass
class _Parts:
    """Tensors sorted by what they are, and the keys that have no place."""

    sides: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    embedded: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)


def _sorted(tensors: dict[str, Tensor], settings: PeftLora) -> _Parts:
    parts = _Parts()
    for key, tensor in tensors.items():
        inner = key.removeprefix(PEFT_PREFIX) if key.startswith(PEFT_PREFIX) else ""
        match = LEAF.fullmatch(inner)
        leaf = ".".join(filter(None, (match["leaf"], match["kind"]))) if match else ""
        if match and leaf in SIDES:
            parts.sides.setdefault(match["path"], {})[match["leaf"]] = tensor
        elif match and leaf in ("lora_embedding_A", "lora_embedding_B"):
            parts.embedded.setdefault(match["path"], {})[leaf.replace("_embedding", "")] = tensor
        elif match and leaf == "lora_B.bias" and settings.lora_bias:
            parts.biases[match["path"]] = tensor
        elif inner.endswith(TOKEN_ROWS) and any(
            inner.removesuffix(TOKEN_ROWS).endswith(n) for n, _ in settings.token_rows
        ):
            parts.rows[inner.removesuffix(TOKEN_ROWS)] = tensor
        elif name := _whole_name(key, settings):
            parts.whole[name] = tensor
        else:
            reason = next((reason for part, reason in STRANGERS.items() if part in key), _unexpected(key))
            parts.strange.append(f"{key}: unknown key, {reason}")
    return parts


def _assembled(settings: PeftLora, tensors: dict[str, Tensor], folder: Path) -> PeftAdapter:
    """Make layers of tensors; raises with every key that has no place, every rank that is wrong, every NaN."""
    parts = _sorted(tensors, settings)
    adapted = parts.sides | parts.embedded
    numbers = ranks_and_alphas(settings, list(adapted), folder)
    found = ([] if tensors else ["it holds no tensors"]) + parts.strange
    for path, sides in adapted.items():
        found += _side_problems(path, sides, numbers[path][0], settings.dora and path in parts.sides)
    if settings.dora and parts.embedded:
        found += [f"{path}: DoRA on embeddings is not supported" for path in parts.embedded]
    found += [f"{path}: a bias of lora_B without a layer" for path in parts.biases if path not in parts.sides]
    rows = {path: (tensor, _rows_of(path, settings)) for path, tensor in parts.rows.items()}
    found += [
        f"{path}: {list(tensor.shape)} for {len(tokens)} trained tokens"
        for path, (tensor, tokens) in rows.items()
        if len(tensor.shape) != 2 or tensor.shape[0] != len(tokens)
    ]
    found += _uncovered(settings, parts)
    found += [f"{key}: {problem}" for key, tensor in tensors.items() if (problem := tensor.form_problem())]
    if found:
        found += [line for line in _bad_tensors(tensors) if line not in found]
        fix = f"save it again as a plain LoRA, or {FIX}"
        raise problems(found, "these weights cannot be converted", str(folder), fix)
    layers = {path: _layer(sides, settings, *numbers[path]) for path, sides in parts.sides.items()}
    embeddings = {path: _layer(sides, settings, *numbers[path]) for path, sides in parts.embedded.items()}
    return PeftAdapter(folder, settings, layers, parts.whole, parts.biases, embeddings, rows)


def _layer(sides: dict[str, Tensor], settings: PeftLora, rank: int, alpha: float) -> PeftLayer:
    magnitude = sides.get("lora_magnitude_vector")
    return PeftLayer(sides["lora_A"], sides["lora_B"], magnitude, rank, alpha, settings.scale_of(rank, alpha))


def _rows_of(path: str, settings: PeftLora) -> tuple[int, ...]:
    return next(rows for name, rows in settings.token_rows if path.endswith(name))


def _uncovered(settings: PeftLora, parts: _Parts) -> list[str]:
    """What the config says was trained whole, and the file lacks."""
    saved = [name.rpartition(".")[0] for name in parts.whole]
    found = [
        f"{name}: trained whole by the config, and not in the file"
        for name in settings.saved_modules
        if not any(path.endswith(name) for path in saved)
    ]
    return found + [
        f"{name}: token rows by the config, and not in the file"
        for name, _ in settings.token_rows
        if not any(path.endswith(name) for path in parts.rows)
    ]


def _whole_name(key: str, settings: PeftLora) -> str:
    """The name in the model of a tensor that the config says was trained whole; empty for another."""
    if not key.startswith(PEFT_PREFIX):
        return ""
    path, _, kind = key.removeprefix(PEFT_PREFIX).rpartition(".")
    for wrapper in WRAPPERS:
        path = path.removesuffix(wrapper)
    saved = any(path.endswith(name) for name in settings.saved_modules)  # so does PEFT: "norm" is every …norm
    if (
        kind not in ("weight", "bias")
        or ".lora_" in key
        or not (saved or (kind == "bias" and settings.biases != "none"))
    ):
        return ""
    return f"{path}.{kind}"


def _unexpected(key: str) -> str:
    """Why a key that looks like a tensor of the model itself is none of this adapter's."""
    if ".lora_" in key or not key.startswith(PEFT_PREFIX):
        return "not a LoRA weight"
    return "a tensor of the base that the config names neither in modules_to_save nor by bias"


def _side_problems(path: str, parts: dict[str, Tensor], rank: int, dora: bool) -> list[str]:
    """A layer must be complete, two-dimensional and of the config's rank."""
    if missing := {"lora_A", "lora_B"} - parts.keys():
        return [f"{path}: no {', '.join(sorted(missing))}, half a download"]
    a, b = parts["lora_A"].shape, parts["lora_B"].shape
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        return [f"{path}: lora_A {list(a)} and lora_B {list(b)} are not ({rank}, in) and (out, {rank}), r being {rank}"]
    magnitude = parts.get("lora_magnitude_vector")
    if dora and magnitude is None:
        return [f"{path}: no lora_magnitude_vector, use_dora being true"]
    if not dora and magnitude is not None:
        return [f"{path}: lora_magnitude_vector, use_dora being false"]
    if magnitude is not None and magnitude.shape != (b[0],):
        return [f"{path}: lora_magnitude_vector {list(magnitude.shape)} is not ({b[0]},)"]
    return []


def _bad_tensors(tensors: dict[str, Tensor]) -> list[str]:
    return [f"{key}: {problem}" for key, tensor in tensors.items() if (problem := tensor.problem())]
