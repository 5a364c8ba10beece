"""One pinned wheel through the real pip: from a folder of packages, and the ways it can fail."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from afs_mlx.clients.wheel import fetch_wheel
from afs_mlx.core.errors import AfsError, ExitCode, MissingError

WHEEL = "toy_base-1.0-py3-none-any.whl"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that this test's pip takes for the only source of packages."""
    folder = tmp_path / "packages"
    folder.mkdir()
    info = "toy_base-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr("toy_base/model.gguf", b"weights")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-base\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pip_fetches_the_wheel_once_and_without_its_dependencies(packages: Path, tmp_path: Path) -> None:
    expected = sha256(packages / WHEEL)
    wheel = fetch_wheel("toy-base", "1.0", expected, tmp_path / "cache")
    assert wheel == tmp_path / "cache" / WHEEL
    assert sha256(wheel) == expected
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [WHEEL]
    (packages / WHEEL).unlink()
    assert fetch_wheel("toy-base", "1.0", expected, tmp_path / "cache") == wheel


def test_a_wheel_put_there_by_hand_is_taken_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(*arguments: object, **options: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", no_pip)
    (tmp_path / WHEEL).write_bytes(b"by hand")
    assert fetch_wheel("toy-base", "1.0", hashlib.sha256(b"by hand").hexdigest(), tmp_path) == tmp_path / WHEEL


@pytest.mark.usefixtures("packages")
def test_another_wheel_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=r"not the one that was checked: sha256 [0-9a-f]{64}, expected 00ff") as caught:
        fetch_wheel("toy-base", "1.0", "00ff", tmp_path / "cache")
    assert "delete it" in caught.value.fix
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_not_on_the_index_is_missing_with_a_remedy(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"toy-base==9\.9 could not be fetched: No matching distribution") as caught:
        fetch_wheel("toy-base", "9.9", "00", tmp_path / "cache")
    assert caught.value.code == ExitCode.MISSING
    assert str(tmp_path / "cache") in caught.value.fix
    assert "toy_base-9.9-*.whl" in caught.value.fix
    (packages / WHEEL).unlink()
    with pytest.raises(MissingError):
        fetch_wheel("toy-base", "1.0", "00", tmp_path / "cache")


def test_without_a_connection_it_says_so(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: refused at once
    (packages / WHEEL).unlink()
    with pytest.raises(MissingError, match="there is no connection to the package index"):
        fetch_wheel("toy-base", "1.0", "00", tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


def failing_pip(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = failing_pip(monkeypatch, 1, "ERROR: Could not install: [Errno 28] No space left on device\n")
    with pytest.raises(AfsError, match="the disk is full") as caught:
        fetch_wheel("toy-base", "1.0", "00", tmp_path)
    assert caught.value.code == ExitCode.ERROR
    assert calls[0][:3] == [sys.executable, "-m", "pip"]
    assert {"--no-deps", "--only-binary=:all:", "--no-input"} <= set(calls[0])


def test_silent_failures_still_end_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_pip(monkeypatch, 2, "")
    with pytest.raises(MissingError, match="pip failed without a message"):
        fetch_wheel("toy-base", "1.0", "00", tmp_path)
    failing_pip(monkeypatch, 0, "")
    with pytest.raises(MissingError, match="pip fetched no wheel"):
        fetch_wheel("toy-base", "1.0", "00", tmp_path)


def test_a_pip_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 1800)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MissingError, match=r"did not finish toy-base==1\.0 within 30 minutes"):
        fetch_wheel("toy-base", "1.0", "00", tmp_path)
    assert list(tmp_path.iterdir()) == []
