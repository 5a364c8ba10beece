"""The header reader against the gguf package's own, and on files that are damaged."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.gguf import FileType, export_gguf
from afs_mlx.engine.gguf.header import read_fields, read_tensor_infos


@pytest.fixture(scope="module")
def exported(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_gguf(tiny_base, tmp_path_factory.mktemp("header") / "model.gguf", "q4_0", name="tiny").path


@pytest.mark.parametrize("file_type", ["f32", "bf16", "q5_k_m"])
def test_it_reads_what_the_package_reads(tiny_base: Path, tmp_path: Path, file_type: FileType) -> None:
    path = export_gguf(tiny_base, tmp_path / "model.gguf", file_type, name="tiny").path
    expected = {
        tensor.name: (
            tensor.tensor_type,
            tuple(int(axis) for axis in reversed(tensor.shape)),
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in GGUFReader(path).tensors
    }
    found = read_tensor_infos(path)
    assert len(found) == 50
    assert {name: (info.type, info.shape, info.offset, info.size_bytes) for name, info in found.items()} == expected


def test_it_reads_the_keys_that_the_package_reads(exported: Path) -> None:
    own = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}  # of the package, not of the file
    expected = {name: field.contents() for name, field in GGUFReader(exported).fields.items() if name not in own}
    found = read_fields(exported)
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}


def test_every_kind_of_key_is_stepped_over(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("a", 1)
    writer.add_int16("b", -1)
    writer.add_float64("c", 0.5)
    writer.add_bool("d", True)
    writer.add_array("e", ["x", "ü" * 100])
    writer.add_array("f", [1.5, 2.5])
    writer.add_array("g", [[1, 2], [3]])
    writer.add_tensor("one", np.arange(3, dtype=np.float32))
    writer.add_tensor("two", np.ones((2, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_tensor_infos(tmp_path / "a.gguf")
    assert [(name, info.type.name, info.shape, info.size_bytes) for name, info in found.items()] == [
        ("one", "F32", (3,), 12),
        ("two", "F16", (2, 5), 20),
    ]
    assert found["two"].offset - found["one"].offset == 64
    fields = read_fields(tmp_path / "a.gguf")
    assert [fields[name] for name in "abcdefg"] == [1, -1, 0.5, True, ["x", "ü" * 100], [1.5, 2.5], [[1, 2], [3]]]
    assert fields["d"] is True
    data = (tmp_path / "a.gguf").read_bytes()
    assert data[found["one"].offset :][:12] == np.arange(3, dtype=np.float32).tobytes()


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.02, 0.5, 0.999])
def test_a_file_that_is_cut_off(exported: Path, tmp_path: Path, share: float) -> None:
    data = exported.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(AfsError):
        read_tensor_infos(tmp_path / "cut.gguf")


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.02])
def test_keys_of_a_file_that_is_cut_off(exported: Path, tmp_path: Path, share: float) -> None:
    data = exported.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(AfsError):
        read_fields(tmp_path / "cut.gguf")


@pytest.mark.parametrize("damaged", ["general.alignment of 0", "a length beyond any file"])
def test_numbers_that_no_file_has(tmp_path: Path, damaged: str) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_array("e", [1.5, 2.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    if damaged.startswith("general"):
        place = data.index(b"general.alignment") + len("general.alignment") + 4
        data[place : place + 4] = bytes(4)
    else:
        data[-16:-8] = b"\xff" * 8
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(AfsError):
        read_tensor_infos(tmp_path / "a.gguf")


@pytest.mark.parametrize(("place", "value"), [(0, b"GGML"), (4, b"\x02\0\0\0"), (16, b"\xff" * 8), (8, b"\xff" * 8)])
def test_a_header_that_is_wrong(exported: Path, tmp_path: Path, place: int, value: bytes) -> None:
    data = bytearray(exported.read_bytes())
    data[place : place + len(value)] = value
    (tmp_path / "wrong.gguf").write_bytes(data)
    with pytest.raises(AfsError):
        read_tensor_infos(tmp_path / "wrong.gguf")
