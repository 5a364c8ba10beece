"""Old .bin adapters are read without torch, and nothing in a hostile one is executed, unpacked or run for long."""

import io
import json
import os
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.peft import convert_peft
from afs_mlx.engine.adapters.peft_reading import read_peft
from afs_mlx.engine.adapters.pickle_machine import UnsafePickleError, unpickle
from afs_mlx.engine.adapters.pickle_reader import read_pickle

GOLDEN = Path(__file__).parents[1] / "golden" / "peft" / "micro"
BIN = GOLDEN / "pickle" / "adapter_model.bin"
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def members() -> dict[str, bytes]:
    """The golden file's members, as torch wrote them."""
    with zipfile.ZipFile(BIN) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(tmp_path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path = tmp_path / "adapter_model.bin"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def with_pickle(tmp_path: Path, data: bytes) -> Path:
    content = members()
    return packed(tmp_path, content | {next(name for name in content if name.endswith("data.pkl")): data})


def test_numbers_of_a_file_of_torch() -> None:
    """The raw one holds bfloat16 under keys with the adapter's name; both are named and shaped as PEFT saved them."""
    plain, raw = read_pickle(BIN, ""), read_pickle(GOLDEN / "pickle-raw-bf16" / "adapter_model.bin", "")
    assert {tensor.dtype for tensor in plain.values()} == {"F32"}
    assert {tensor.dtype for tensor in raw.values()} == {"BF16"}
    assert {key.replace(".default", "") for key in raw} == set(plain)
    assert plain[NAME].shape == (2, 32)
    data = next(data for name, data in members().items() if name.endswith("data/0"))
    first = next(iter(plain.values()))
    np.testing.assert_array_equal(first.floats().ravel(), np.frombuffer(data, "<f4")[: first.size])


def test_reading_imports_neither_pickle_nor_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from afs_mlx.engine.adapters.pickle_reader import read_pickle;"
        "known = set(sys.modules); read_pickle(Path(sys.argv[1]), '');"
        "new = set(sys.modules) - known; print(sorted(new & {'pickle', '_pickle', 'torch', 'subprocess'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(BIN)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def hostile(tmp_path: Path) -> dict[str, bytes]:
    """Pickles that would do something, each leaving a file that says so."""
    mark = tmp_path / "executed"
    touch = f"touch {mark}"
    python = f"open({str(mark)!r}, 'w').close()"
    inner = Call(__import__("importlib").import_module, "os")
    return {
        "os.system": pickle.dumps(Call(os.system, touch), 2),
        "os.system, protocol 0": pickle.dumps(Call(os.system, touch), 0),
        "os.system, protocol 5": pickle.dumps(Call(os.system, touch), 5),
        "builtins.eval": pickle.dumps(Call(eval, python), 2),
        "builtins.exec": pickle.dumps(Call(exec, python), 4),
        "a tensor that is a call": pickle.dumps({NAME: Call(os.system, touch)}, 2),
        "nested": pickle.dumps({NAME: Call(getattr, inner, "system")}, 2),
        "subprocess": pickle.dumps(Call(subprocess.check_call, ["touch", str(mark)]), 4),
        "inst": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "newobj": b"cos\nsystem\nS'" + touch.encode() + b"'\n\x85\x81.",
        "call of a pushed name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.",
        "torch's own loader": b"ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
        "rebuild with a lookalike": b"ctorch._utils\n_rebuild_tensor\n)R.",
        "attributes by build": b"ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__cos\nsystem\nsb.",
        "persistent id of its own": b"X\x02\x00\x00\x00osQ.",
        "extension": b"\x82\x01.",
    }


KINDS = sorted(hostile(Path("/nowhere")))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_executed(kind: str, tmp_path: Path) -> None:
    data = hostile(tmp_path)[kind]
    path = with_pickle(tmp_path, data)
    with pytest.raises(AfsError, match="this pickle is refused, and nothing in it was executed"):
        read_pickle(path, "fix")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "nested", "subprocess"])
def test_the_hostile_ones_are_hostile(kind: str, tmp_path: Path) -> None:
    """Else the test above would prove nothing: the real pickle module runs them, in a process of its own."""
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))"
    data = hostile(tmp_path)[kind]
    subprocess.run([sys.executable, "-c", code, data.hex()], capture_output=True, check=False)
    assert (tmp_path / "executed").exists() or kind == "nested"


def nested_tuples(levels: int) -> bytes:
    """t = (t, t) over and over: a hundred bytes whose hash takes 2^levels steps."""
    body = b"".join(b"h\x00h\x00\x86q\x00" for _ in range(levels))
    return b"\x80\x02K\x01\x85q\x00" + body + b"}h\x00K\x02s."


BOMBS = {
    "a key that is a nest of tuples": (nested_tuples(60), "a dictionary's key is not text"),
    "memory that was not filled": (b"\x80\x02h\x05.", "uses a memory that it did not fill"),
    "an empty stack": (b"\x80\x02\x85.", "its stack is empty"),
    "a mark that was not set": (b"\x80\x02}u.", "a mark that it did not set"),
    "a mark taken for a value": (b"\x80\x02(\x85.", "its stack is empty"),
    "no end": (b"\x80\x02}", "not a complete file"),
    "a list": (b"\x80\x02].", "it holds a list"),
    "a number for a tensor": (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "'a' is no tensor"),
    "many copies": (b"\x80\x02" + b"2" * 1000 + b".", "opcode DUP"),
    "text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fabc.", "not a complete file"),
    "not a pickle": (b"\xff\xff\xff", "not a complete file"),
    "empty": (b"", "not a complete file"),
}


@pytest.mark.parametrize(("data", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_bombs_and_nonsense(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=message):
        read_pickle(with_pickle(tmp_path, data), "fix")


def tensor_pickle(**changes: Any) -> bytes:
    """One tensor as torch pickles it, with the arguments changed."""
    given = {
        "kind": "FloatStorage",
        "key": "0",
        "count": 64,
        "offset": 0,
        "shape": (2, 32),
        "stride": (32, 1),
    } | changes
    out = io.BytesIO()

    class Name:
        def __init__(self, module: str, name: str) -> None:
            self.text = f"{module}\n{name}\n"

    def put(value: Any) -> None:
        if isinstance(value, Name):
            out.write(b"c" + value.text.encode())
        elif isinstance(value, tuple):
            out.write(b"(")
            for item in value:
                put(item)
            out.write(b"t")
        elif isinstance(value, str):
            out.write(b"X" + struct.pack("<I", len(value)) + value.encode())
        elif isinstance(value, bool):
            out.write(b"\x88" if value else b"\x89")
        else:
            out.write(pickle.dumps(value, 2)[2:-1])

    out.write(b"\x80\x02}")
    put(NAME)
    put(Name("torch._utils", "_rebuild_tensor_v2"))
    out.write(b"(")
    put(("storage", Name("torch", given["kind"]), given["key"], "cpu", given["count"]))
    out.write(b"Q")
    for value in (given["offset"], given["shape"], given["stride"], False):
        put(value)
    put(Name("collections", "OrderedDict"))
    out.write(b")RtRs.")
    return out.getvalue()


def test_the_crafted_tensor_is_read(tmp_path: Path) -> None:
    pickletools.dis(tensor_pickle(), io.StringIO())
    tensors = read_pickle(with_pickle(tmp_path, tensor_pickle()), "fix")
    assert (tensors[NAME].dtype, tensors[NAME].shape) == ("F32", (2, 32))
    data = next(data for name, data in members().items() if name.endswith("data/0"))
    np.testing.assert_array_equal(tensors[NAME].floats().ravel(), np.frombuffer(data, "<f4")[:64])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 65}, "reaches beyond its numbers"),
        ({"offset": 1}, "reaches beyond its numbers"),
        ({"offset": -1}, "reaches beyond its numbers"),
        ({"shape": (2**20, 2**20), "stride": (2**20, 1)}, "reaches beyond its numbers"),
        ({"shape": (2**39, 2**39), "stride": (0, 0)}, "does not lie row by row"),
        ({"stride": (1, 2)}, "does not lie row by row"),
        ({"shape": (-2, 32)}, "a tensor's shape is not a few whole numbers"),
        ({"shape": (2, 32, 1)}, "shape and strides differ"),
        ({"shape": (1,) * 9, "stride": (1,) * 9}, "a tensor's shape is not a few whole numbers"),
        ({"key": "../../etc/passwd"}, "are not in the file"),
        ({"key": "99"}, "are not in the file"),
        ({"kind": "UntypedStorage"}, "it asks for torch.UntypedStorage"),
        ({"kind": "DoubleStorage"}, "reaches beyond its numbers"),
        ({"count": True}, "something outside that is no storage|reaches beyond"),
    ],
)
def test_tensors_that_reach_beyond_their_numbers(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=message):
        read_pickle(with_pickle(tmp_path, tensor_pickle(**changes)), "fix")


def test_members_that_torch_does_not_write(tmp_path: Path) -> None:
    content = members()
    root = next(iter(content)).split("/")[0]
    for name in (
        "../../evil",
        "/etc/evil",
        f"{root}/../evil",
        f"{root}\\data\\0",
        "other/data/999",
        f"{root}/code/x.py",
    ):
        with pytest.raises(AfsError, match=r"which torch does not write|several folders"):
            read_pickle(packed(tmp_path, content | {name: b"x"}), "fix")
    assert not list(tmp_path.parent.glob("evil"))


def test_packed_members_and_large_pickles_are_refused(tmp_path: Path) -> None:
    content = members()
    name = next(name for name in content if name.endswith("data.pkl"))
    with pytest.raises(AfsError, match="is packed; torch stores its members plainly"):
        read_pickle(packed(tmp_path, content | {name: bytes(50_000_000)}, zipfile.ZIP_DEFLATED), "fix")
    with pytest.raises(AfsError, match=r"data\.pkl has 16,777,217 bytes"):
        read_pickle(packed(tmp_path, {name: bytes(16 * 2**20 + 1)}), "fix")


def test_half_a_file_and_older_formats(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    data = BIN.read_bytes()
    for part in (data[: len(data) // 2], data[len(data) // 2 :], b"x", pickle.dumps({"a": 1}, 2)):
        path.write_bytes(part)
        with pytest.raises(
            AfsError, match=r"this pickle is refused|not a complete file of torch\.save in its zip format"
        ):
            read_pickle(path, "fix")
    big = {name: b"big" if name.endswith("byteorder") else value for name, value in members().items()}
    with pytest.raises(AfsError, match="big-endian"):
        read_pickle(packed(tmp_path, big), "fix")


def test_a_number_that_changed_on_the_way_is_noticed(tmp_path: Path) -> None:
    data = bytearray(BIN.read_bytes())
    tensor = read_pickle(BIN, "")[NAME]
    data[tensor.offset + 5] ^= 1
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(data)
    with pytest.raises(AfsError, match="its checksum does not fit"):
        read_pickle(path, "fix")


def test_every_cut_and_every_changed_byte_of_the_pickle_is_survived(tmp_path: Path) -> None:
    """Either it is still a dictionary of inert values, or it is refused as what it is."""
    data = next(value for name, value in members().items() if name.endswith("data.pkl"))
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        changed = bytearray(data)
        changed[random.integers(len(data))] = random.integers(256)
        try:
            outcomes.add(type(unpickle(bytes(changed))).__name__)
        except (UnsafePickleError, ValueError) as error:
            outcomes.add(type(error).__name__)
    assert {"_Ordered", "UnsafePickleError"} <= outcomes or {"dict", "UnsafePickleError"} <= outcomes


def test_hostile_adapter_is_refused_before_mlx_and_leaves_nothing(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(GOLDEN / "pickle", folder)
    shutil.copy(with_pickle(tmp_path, hostile(tmp_path)["os.system"]), folder / "adapter_model.bin")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": -1}))
    with pytest.raises(AfsError) as caught:
        convert_peft(folder, tiny_base, tmp_path / "out")
    for part in ("2 things are wrong", "r: -1 is not", "nothing in it was executed", "safe_serialization=True"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "executed").exists()


def test_safetensors_beside_a_pickle_are_preferred(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(GOLDEN / "several-names", folder)
    (folder / "adapter_model.bin").write_bytes(b"never opened")
    assert {tensor.path.suffix for tensor in read_peft(folder).tensors} == {".safetensors"}
