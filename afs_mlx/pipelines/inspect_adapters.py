"""What an adapter is: settings, base and how sure that is, provenance, and each layer's update; and two side by side.

For MLX and PEFT folders alike; without mlx and without the base.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afs_mlx.core.files import read_json
from afs_mlx.schema.base import Base

if TYPE_CHECKING:
    from afs_mlx.engine.adapters.comparison import Comparison
    from afs_mlx.engine.adapters.inspection import Adapter, LayerFacts

RECORDS = ("run.json", "manifest.json")


@dataclass(frozen=True)
class Lineage:
    """The base an adapter belongs to: its catalog id, empty for a stranger, the name it gave, and how sure that is."""

    id: str
    named: str
    weights_sha256: str
    shapes: dict[str, int | str]
    certainty: str


@dataclass(frozen=True)
class Inspection:
    """An adapter, its layers' updates, its base and where it comes from (empty where nothing was recorded)."""

    adapter: "Adapter"
    layers: "list[LayerFacts]"
    base: Lineage
    provenance: dict[str, Any]


def inspect_adapter(folder: Path, bases: Mapping[str, Base]) -> Inspection:
    """Read an adapter folder and measure every layer. Raises one AfsError that lists every problem."""
    from afs_mlx.engine.adapters.inspection import layer_facts, read_adapter

    adapter = read_adapter(folder)
    return Inspection(adapter, layer_facts(adapter), _lineage(adapter, bases), _provenance(folder))


def compare_adapters(first: Path, second: Path) -> "Comparison":
    """Compare two adapter folders. Raises AfsError for a broken one and for adapters of different models."""
    from afs_mlx.engine.adapters.comparison import compare
    from afs_mlx.engine.adapters.inspection import read_adapter

    return compare(read_adapter(first), read_adapter(second))


def _lineage(adapter: "Adapter", bases: Mapping[str, Base]) -> Lineage:
    """From the surest to the least: the exact weights, a lineage, a name, sizes."""
    recorded = adapter.base
    named = recorded.lineage or recorded.id
    found, by_end = _catalogued(named, bases)
    if recorded.sha256:
        certainty = "the hash of its weights was recorded"
    elif recorded.lineage:
        certainty = "its lineage was recorded, not the weights"
    elif found:
        certainty = "by the end of its name alone" if by_end else "by its name alone"
    elif named:
        certainty = "by a name that is not in the catalog"
    else:
        certainty = "not recorded; the layers' sizes are all there is"
    return Lineage(found, recorded.id or named, recorded.sha256, dict(recorded.shapes), certainty)


def _catalogued(named: str, bases: Mapping[str, Base]) -> tuple[str, bool]:
    """The id of the base that a name means, and whether only the name's end, as of a local folder, was known."""
    whole = {name: base.id for base in bases.values() for name in base.lineage}
    ends = {name.rpartition("/")[2]: found for name, found in whole.items()}
    name = named.lower().rstrip("/")
    return (whole[name], False) if name in whole else (ends.get(name.rpartition("/")[2], ""), True)


def _provenance(folder: Path) -> dict[str, Any]:
    """What run.json, or the manifest of an export, says of when, how and from what the adapter was made."""
    path = next((folder / name for name in RECORDS if (folder / name).is_file()), None)
    if path is None:
        return {}
    record = read_json(path, path.name)
    kept = ("made_by", "made_at", "finished_at", "status", "expert", "version", "demo", "inputs", "data", "parent")
    found = {
        key: record[key]
        for key in (*kept, "code", "packages", "seed", "verification")
        if record.get(key) not in (None, "", {})
    }
    return {"file": path.name, **found}
