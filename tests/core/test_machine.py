"""What a machine is called; the Apple cases by their published names, since tests run elsewhere too."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from afs_mlx.core.machine import Machine


def machine(system: str, processor: str) -> Machine:
    return Machine(system, processor, cores=8, memory_bytes=16 << 30, python="3.12.0")


def test_here_is_this_machine() -> None:
    here = Machine.here()
    assert here.system.startswith(platform.system())
    assert here.processor
    assert here.cores == os.cpu_count()
    assert 1 << 28 < here.memory_bytes < 1 << 50
    assert here.as_dict()["python"] == platform.python_version()


def test_apple_silicon_and_rosetta_are_told_apart() -> None:
    native = machine("Darwin 24.1.0 arm64", "Apple M3 Pro")
    assert (native.apple_silicon, native.rosetta) == (True, False)
    translated = machine("Darwin 24.1.0 x86_64", "Apple M3 Pro")
    assert (translated.apple_silicon, translated.rosetta) == (False, True)
    intel = machine("Darwin 21.6.0 x86_64", "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz")
    assert (intel.apple_silicon, intel.rosetta) == (False, False)
    linux = machine("Linux 6.8.0 aarch64", "Apple M1")  # Asahi: mlx for the CPU
    assert (linux.apple_silicon, linux.rosetta) == (False, False)


def test_a_mac_is_asked_for_its_brand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "Apple M2\n", "")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", run)
    assert Machine.here().processor == "Apple M2"
    assert asked == [["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]]


def test_a_mac_without_sysctl_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setattr(subprocess, "run", run)
    assert Machine.here().processor == "arm"


def test_an_arm_linux_has_no_model_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nBogoMIPS\t: 48.00\n")
    assert Machine.here().processor == "aarch64"
