"""The Hugging Face Hub: what a repository weighs, and downloading it.

Only weights, configuration and tokenizer files are ever fetched, never code or pickles. huggingface-hub keeps the
cache, so what other tools have downloaded is found here too.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import disk_error
from afs_mlx.core.model_folder import missing_files

ALLOWED = ["*.json", "model*.safetensors", "tokenizer.model", "*.jinja", "*.txt", "LICENSE*", "NOTICE*"]
IGNORED = ["*/*", "*.py", "*.bin"]
CONNECT_TIMEOUT_S = 10.0
NETWORK_BAR = "Downloading bytes"  # huggingface-hub's second bar of bytes, before they are unpacked


@dataclass(frozen=True)
class HubListing:
    """What `hub_download` would fetch, at the commit that the revision stands for now."""

    repo: str
    commit: str
    files: tuple[str, ...]
    size_bytes: int


def hub_size(repo: str, revision: str | None = None) -> HubListing:
    """Ask the Hub for the files that would be fetched and their size; nothing is downloaded."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    with _hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=CONNECT_TIMEOUT_S)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    files = tuple(filter_repo_objects(sorted(sizes), allow_patterns=ALLOWED, ignore_patterns=IGNORED))
    return HubListing(repo, info.sha or "", files, sum(sizes[file] for file in files))


type OnProgress = Callable[[int, int], None]  # bytes done, bytes known of so far


def hub_download(repo: str, revision: str | None = None, on_progress: OnProgress | None = None) -> Path:
    """Fetch a repository into the Hub cache and return its snapshot folder; what is there already is not fetched again.

    `on_progress` is called from several threads. Raises MissingError when the Hub does not give it.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(repo, revision):
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=ALLOWED,
            ignore_patterns=IGNORED,
            etag_timeout=CONNECT_TIMEOUT_S,
            tqdm_class=_silent_bar(on_progress),
        )
    missing = missing_files(Path(folder))
    if missing:
        raise AfsError(
            f"the repository is no complete model: {', '.join(missing[:5])} missing", repo, "choose another repository"
        )
    return Path(folder)


def _silent_bar(on_progress: OnProgress | None) -> type[Any]:
    """A progress bar class that writes nothing and passes bytes on: only the command line renders."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Nowhere:
        def write(self, text: str) -> int:
            return len(text)

        def flush(self) -> None:
            return

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # huggingface-hub's own, unknown to tqdm
            super().__init__(*args, **{**options, "file": Nowhere(), "disable": False})

        def update(self, n: float | None = 1) -> Any:
            shown = super().update(n)
            if on_progress is not None and self.unit == "B" and self.desc.rstrip(": ") != NETWORK_BAR:
                on_progress(int(self.n), int(self.total or 0))
            return shown

    return Bar


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """What huggingface-hub raises, as something a person can mend."""
    from huggingface_hub import errors

    # httpx, or its successor: whichever this huggingface-hub is built on.
    http_error: type[Exception] = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    again = "connect once and run afs-mlx pull again; what is downloaded already stays and is not fetched twice"
    try:
        yield
    except errors.HFValidationError as error:
        raise AfsError("not a repository name", repo, "write it as owner/name") from error
    except errors.GatedRepoError as error:
        fix = "accept its licence on its page, run hf auth login, then pull again"
        raise MissingError(
            "the Hub gives this repository only to people who accepted its licence", repo, fix
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingError(f"the repository has no revision {revision!r}", repo, "leave the revision out") from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the name; for a private one run hf auth login"
        raise MissingError("the Hub has no such repository, or it is private", repo, fix) from error
    except errors.OfflineModeIsEnabled as error:
        raise MissingError(
            "HF_HUB_OFFLINE forbids the download", repo, "unset HF_HUB_OFFLINE and pull again"
        ) from error
    except (http_error, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
        if answer is not None:
            what, fix = f"the Hub answered {answer.status_code}", "try again later with afs-mlx pull"
            raise MissingError(what, repo, fix) from error
        raise MissingError("the Hub cannot be reached", repo, again) from error
    except (OSError, RuntimeError) as error:
        if "No space left" in str(error):  # the downloader in Rust says so with a RuntimeError
            raise disk_error(OSError(errno.ENOSPC, str(error)), _cache()) from error
        if isinstance(error, OSError) and error.errno in (errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise disk_error(error, _cache()) from error
        raise AfsError(f"the download broke off: {error}", repo, again) from error


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
