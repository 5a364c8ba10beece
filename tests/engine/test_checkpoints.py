"""A checkpoint is whole or not there, belongs to one training, and outlives what goes wrong with the next."""

import errno
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training import checkpoints as module
from afs_mlx.engine.training.checkpoints import ARRAYS, NUMBERS, Checkpoints, Snapshot
from afs_mlx.engine.training.progress import RECENT, Progress

IDENTITY = {"base": "aa", "recipe": "bb", "data": "cc"}
PROGRESS = Progress(
    step=3,
    tokens_seen=120,
    training_s=1.5,
    elapsed_s=2.25,
    validation_s=0.5,
    validations=2,
    base_loss=5.5,
    best_loss=4.25,
    best_step=3,
    worse_in_a_row=1,
    last_loss=4.125,
    rate_factor=0.25,
    rollbacks=2,
    skipped=[7, 9],
    recent=[5.0, 4.1 + 0.2],
    peak_memory_gb=0.1,
)


def snapshot(step: int = 3, size: int = 6) -> Snapshot:
    rng = np.random.default_rng(step)

    def noise(dtype: mx.Dtype = mx.float32) -> mx.array:
        return mx.array(rng.normal(0, 1, (size, 2))).astype(dtype)

    optimizer = {"step": mx.array(step, mx.uint64), "learning_rate": mx.array(1e-3), "a.m": noise(), "a.v": noise()}
    weights = {"model.layers.0.q_proj.lora_a": noise(), "model.layers.0.q_proj.lora_b": noise(mx.bfloat16)}
    return Snapshot(replace(PROGRESS, step=step), weights, {name: noise() for name in weights}, optimizer)


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", IDENTITY, 3)


def bits(arrays: dict[str, mx.array]) -> dict[str, Any]:
    return {n: (a.dtype, a.shape, np.array(mx.view(a[None], mx.uint8)).tobytes()) for n, a in arrays.items()}


def read(kept: Checkpoints) -> tuple[Snapshot, list[str]]:
    found = kept.latest()
    assert found is not None
    return found


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_comes_back_bit_for_bit(kept: Checkpoints) -> None:
    written = snapshot()
    assert kept.save(written) == "step-00000003"
    found, damaged = read(kept)
    assert damaged == []
    assert found.progress == written.progress == replace(PROGRESS, step=3)
    for part in ("weights", "best", "optimizer"):
        assert bits(getattr(found, part)) == bits(getattr(written, part))


def test_there_may_be_none(kept: Checkpoints) -> None:
    assert (kept.latest(), kept.names()) == (None, [])
    kept.folder.mkdir(parents=True)
    assert kept.latest() is None


def test_the_newest_is_taken_and_the_oldest_go(kept: Checkpoints) -> None:
    for step in (9, 10, 100, 99_999_999):
        kept.save(snapshot(step))
    assert kept.names() == ["step-00000010", "step-00000100", "step-99999999"]
    assert read(kept)[0].progress.step == 99_999_999


def test_one_that_is_written_again_takes_the_old_ones_place(kept: Checkpoints) -> None:
    kept.save(snapshot(3, size=6))
    kept.save(snapshot(3, size=8))
    assert read(kept)[0].optimizer["a.m"].shape == (8, 2)
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_one_just_written_stays_whatever_lies_beside_it(kept: Checkpoints, keep: int) -> None:
    """A power cut damaged the newer ones, so that training went on from an older one."""
    kept = replace(kept, keep=keep)
    for step in range(7, 7 + keep):
        folder = kept.folder / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / NUMBERS).write_text("half")
    name = kept.save(snapshot(5))
    assert kept.names() == [name], "what was passed over is of a past that is no more"
    assert read(kept)[0].progress.step == 5


# What is not whole


def cut(folder: Path) -> None:
    path = folder / ARRAYS
    path.write_bytes(path.read_bytes()[:-10])


def turn_a_bit(folder: Path) -> None:
    data = bytearray((folder / ARRAYS).read_bytes())
    data[-3] ^= 1
    (folder / ARRAYS).write_bytes(data)


def change(**values: Any) -> Callable[[Path], None]:
    def mend(folder: Path) -> None:
        facts = json.loads((folder / NUMBERS).read_text())
        (folder / NUMBERS).write_text(json.dumps({**facts, **values}))

    return mend


def progress(**values: Any) -> Callable[[Path], None]:
    return change(progress=json.dumps({**json.loads(PROGRESS.as_json()), **values}))


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def overwrite(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return overwrite


def no_file(folder: Path) -> None:
    (folder / ARRAYS).unlink()
    (folder / ARRAYS).mkdir()


def numbers_cut(folder: Path) -> None:
    (folder / NUMBERS).write_text((folder / NUMBERS).read_text()[:-40])


def all_gone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "arrays cut": cut,
    "a bit of the arrays": turn_a_bit,
    "arrays empty": written(ARRAYS, b""),
    "arrays gone": lambda folder: (folder / ARRAYS).unlink(),
    "arrays a folder": no_file,
    "numbers cut": numbers_cut,
    "numbers empty": written(NUMBERS, b""),
    "numbers zeros": written(NUMBERS, bytes(400)),
    "numbers not UTF-8": written(NUMBERS, b"\xff\xfe{}"),
    "numbers gone": lambda folder: (folder / NUMBERS).unlink(),
    "numbers a list": written(NUMBERS, b"[]"),
    "no identity": change(identity=None),
    "no checksum": change(sha256=None),
    "no progress": change(progress=None),
    "progress a number": change(progress=7),
    "progress cut": change(progress='{"step": 3'),
    "progress with more": progress(extra=1),
    "a step that is no number": progress(step="three"),
    "a step that is a fraction": progress(step=3.5),
    "a loss that is no number": progress(base_loss=None),
    "everything gone": all_gone,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over_and_named(kept: Checkpoints, damage: str) -> None:
    for step in (3, 6, 9):
        kept.save(snapshot(step))
    DAMAGE[damage](kept.folder / "step-00000009")
    found, damaged = read(kept)
    assert found.progress.step == 6
    assert bits(found.weights) == bits(snapshot(6).weights)
    (line,) = damaged
    assert line.startswith("step-00000009: ")
    assert len(line) > len("step-00000009: ")


def test_when_all_are_damaged_it_is_an_error_that_lists_them(kept: Checkpoints) -> None:
    for step in (3, 6):
        kept.save(snapshot(step))
        cut(kept.folder / f"step-{step:08d}")
    before = contents(kept.folder)
    with pytest.raises(AfsError, match="no checkpoint can be read") as caught:
        kept.latest()
    assert "step-00000003" in caught.value.what
    assert "step-00000006" in caught.value.what
    assert caught.value.where == str(kept.folder)
    assert "without --resume" in caught.value.fix
    assert contents(kept.folder) == before, "nothing is thrown away"


def test_what_else_lies_in_the_folder_is_not_a_checkpoint(kept: Checkpoints) -> None:
    """Temporary folders that a kill left, a person's notes, other systems' hidden files."""
    kept.save(snapshot(3))
    for name in (".step-00000006.x1y2z3", ".step-00000003.abc.old", "step-last", "old"):
        (kept.folder / name).mkdir()
        (kept.folder / name / NUMBERS).write_text("half")
    for name in (".DS_Store", "notes.txt", "step-00000009"):
        (kept.folder / name).write_text("mine")
    found, damaged = read(kept)
    assert found.progress.step == 3
    assert [line.partition(":")[0] for line in damaged] == ["step-00000009"], "a file with a checkpoint's name is told"
    kept.save(snapshot(4))
    assert (kept.folder / "notes.txt").is_file()


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        ({"base": "x"}, ["base"]),
        ({"recipe": "x"}, ["recipe"]),
        ({"data": "x", "base": "x"}, ["base", "data"]),
        ({"ranks": "2"}, ["ranks"]),
    ],
)
def test_one_of_another_training_is_an_error_not_a_damaged_one(
    kept: Checkpoints, mine: dict[str, str], named: list[str]
) -> None:
    kept.save(snapshot(3))
    before = contents(kept.folder)
    with pytest.raises(AfsError, match="the checkpoint was made with another") as caught:
        replace(kept, identity={**IDENTITY, **mine}).latest()
    assert all(f"another {name}" in caught.value.what for name in named)
    assert not any(f"another {name}" in caught.value.what for name in IDENTITY.keys() - set(named))
    assert contents(kept.folder) == before


def test_one_that_was_made_for_more_is_of_another_training(kept: Checkpoints) -> None:
    replace(kept, identity={**IDENTITY, "ranks": "2"}).save(snapshot(3))
    with pytest.raises(AfsError, match="another ranks"):
        kept.latest()


# What cannot be written


def full(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_mlx(*args: Any, **options: Any) -> None:
    raise RuntimeError("[write] Unable to write 380242 bytes to file.")


class Usage:
    """A disk with nothing left."""

    free = 0


@pytest.mark.parametrize("where", ["arrays", "numbers", "sync", "folder", "rename"])
def test_a_full_disk_is_an_error_and_spares_what_was_there(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    kept.save(snapshot(3))
    kept.save(snapshot(6))
    before = contents(kept.folder)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: Usage)
        if where == "arrays":
            patch.setattr(module.mx, "save_safetensors", full_in_mlx)
        elif where == "numbers":
            patch.setattr(module, "write_json", full)
        elif where == "sync":
            patch.setattr("afs_mlx.core.files.os.fsync", full)
        elif where == "folder":
            patch.setattr("afs_mlx.core.files.tempfile.mkdtemp", full)
        else:
            patch.setattr(Path, "replace", full)
        with pytest.raises(AfsError, match="the disk is full") as caught:
            kept.save(snapshot(9))
        assert "AFS_MLX_HOME" in caught.value.fix
    assert contents(kept.folder) == before
    assert {path.name for path in kept.folder.iterdir()} == {"step-00000003", "step-00000006"}, "no half one is left"
    assert read(kept)[0].progress.step == 6
    kept.save(snapshot(9))
    assert read(kept)[0].progress.step == 9


def test_what_mlx_cannot_write_for_another_reason_is_told_as_it_is(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.mx, "save_safetensors", full_in_mlx)
    with pytest.raises(AfsError, match=r"the checkpoint cannot be written: .*Unable to write") as caught:
        kept.save(snapshot(9))
    assert caught.value.fix


SCRIPT = """
import resource, sys
from pathlib import Path
import afs_mlx.engine
import mlx.core as mx
from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training.checkpoints import Checkpoints, Snapshot
from afs_mlx.engine.training.progress import Progress

kept = Checkpoints(Path(sys.argv[1]), {"base": "aa", "recipe": "bb", "data": "cc"}, 3)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
arrays = {"w": mx.zeros((100_000,))}
try:
    kept.save(Snapshot(Progress(step=9, base_loss=1.0, best_loss=1.0), arrays, {}, {}))
except AfsError as error:
    print(error.what)
"""


def test_a_file_that_the_system_cuts_off_is_never_a_checkpoint(kept: Checkpoints) -> None:
    """The real write, against a limit of the process: mlx is told less was written than it asked for."""
    kept.save(snapshot(3))
    before = contents(kept.folder)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(kept.folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout
    assert contents(kept.folder) == before
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("moment", ["arrays", "numbers", "swap"])
def test_a_kill_while_saving_leaves_the_one_before(kept: Checkpoints, moment: str) -> None:
    """The process ends without any handler, as by SIGKILL, before, between and after the files are written."""
    kept.save(snapshot(3))
    names = {"arrays": "mx.save_safetensors", "numbers": "module.write_json", "swap": "Path.replace"}
    script = SCRIPT.replace("resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))", "").replace(
        "try:",
        f"import os\nfrom afs_mlx.engine.training import checkpoints as module\n"
        f"{names[moment]} = lambda *args, **kwargs: os._exit(9)\ntry:",
    )
    done = subprocess.run([sys.executable, "-c", script, str(kept.folder)], check=False, timeout=120)
    assert done.returncode == 9
    assert read(kept)[0].progress.step == 3
    assert kept.names() == ["step-00000003"]
    kept.save(snapshot(9))
    assert read(kept)[0].progress.step == 9
    assert kept.names() == ["step-00000003", "step-00000009"]


def test_what_a_kill_left_goes_with_the_next_save(kept: Checkpoints) -> None:
    left = kept.folder / ".step-00000006.x1y2z3"
    left.mkdir(parents=True)
    (left / ARRAYS).write_bytes(bytes(1000))
    kept.save(snapshot(9))
    assert not left.exists()


def broken_disk(*args: Any, **options: Any) -> str:
    raise OSError(errno.EIO, "Input/output error")


def test_a_disk_that_cannot_read_one_leaves_the_older(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (3, 6):
        kept.save(snapshot(step))
    real = module.sha256_of
    monkeypatch.setattr(module, "sha256_of", lambda path: (broken_disk if "06" in str(path) else real)(path))
    assert read(kept)[0].progress.step == 3


# The numbers


def test_progress_is_the_same_after_json() -> None:
    third = replace(PROGRESS, training_s=1 / 3, recent=[0.1 * i for i in range(RECENT)], last_loss=None)
    assert Progress.from_json(third.as_json()) == third
    assert math.isclose(third.training_s, 1 / 3, rel_tol=0)


def test_a_copy_shares_no_list() -> None:
    copy = PROGRESS.copy()
    copy.skipped.append(1)
    copy.note_loss(3.0)
    assert (PROGRESS.skipped, len(PROGRESS.recent)) == ([7, 9], 2)
