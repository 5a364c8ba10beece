"""JSON Lines: every bad line is named, all of them at once, and nothing is read from a bad file."""

from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.config import StrictModel
from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.jsonl import read_jsonl, write_jsonl


class Row(StrictModel):
    id: str
    n: int = 0


def read(tmp_path: Path, content: bytes) -> list[dict[str, Any]]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return read_jsonl(path, dict)


def problems_of(tmp_path: Path, content: bytes) -> list[str]:
    with pytest.raises(AfsError) as caught:
        read(tmp_path, content)
    assert caught.value.where == str(tmp_path / "rows.jsonl")
    return [line.strip() for line in caught.value.what.splitlines()[1:]]


def test_rows_come_in_order_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, b'\n{"id": "a"}\n   \n{"id": "b"}') == [{"id": "a"}, {"id": "b"}]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbf{"id": "a"}\r\n{"id": "b"}\r\n') == [{"id": "a"}, {"id": "b"}]


def test_a_byte_order_mark_inside_the_file_is_an_error(tmp_path: Path) -> None:
    assert problems_of(tmp_path, b'{}\n\xef\xbb\xbf{"id": "b"}')[0].startswith("line 2: not valid JSON")


def test_line_separators_of_unicode_inside_a_text_end_no_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d"
    assert read(tmp_path, ('{"id": "' + text + '"}\n').encode()) == [{"id": text}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not valid JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"a": 1,}', "not valid JSON: "),
        (b"{'a': 1}", "not valid JSON: "),
        (b'{"a": 1} {"b": 2}', "not valid JSON: Extra data at column 10"),
        (b"nonsense", "not valid JSON: Expecting value at column 1"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        (b'{"a": 1, "content": 2, "content": 3}', "key 'content' stands twice in one object"),
        (b'{"a": [{"b": {"x": 1, "y": 2, "x": 1}}]}', "key 'x' stands twice in one object"),
        (b"[1, 2]", "a JSON object is expected, not list"),
        (b'"text"', "a JSON object is expected, not str"),
        (b"null", "a JSON object is expected, not NoneType"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        (b'{"a": "\\ud83d"}', "'\\ud83d' is half a character"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": "tab\there"}', "not valid JSON: Invalid control character at"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    found = problems_of(tmp_path, b'{"id": "good"}\n\n' + line + b"\n")
    assert len(found) == 1
    assert found[0].startswith(f"line 3: {message}")


def test_an_escaped_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"a": "\\ud83d\\ude00"}') == [{"a": "\U0001f600"}]


def test_all_bad_lines_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n{oops\n{"id": 5, "n": "x"}\n{"id": "d"}\n{"n": 1, "typo": 2}\n\xff\n')
    with pytest.raises(AfsError) as caught:
        read_jsonl(path, Row.model_validate)
    found = [line.strip() for line in caught.value.what.splitlines()]
    assert found[0] == "bad rows (6 problems)"
    assert [line.split(":")[0] for line in found[1:]] == ["line 2", "line 3", "line 3", "line 5", "line 5", "line 6"]
    assert found[2].startswith("line 3: id: ")
    assert found[3].startswith("line 3: n: ")
    assert "line 5: typo: Extra inputs are not permitted" in found
    assert "nothing was read" in caught.value.fix


def test_utf16_is_told_to_be_no_utf8(tmp_path: Path) -> None:
    assert problems_of(tmp_path, '{"id": "a"}\n'.encode("utf-16"))[0].startswith("line 1: not UTF-8")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(AfsError, match="the file holds no rows"):
        read(tmp_path, content)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="the file does not exist"):
        read_jsonl(tmp_path / "none.jsonl", dict)
    with pytest.raises(AfsError, match="cannot read"):
        read_jsonl(tmp_path, dict)


def test_an_error_that_is_no_value_error_is_not_hidden(tmp_path: Path) -> None:
    def parse(row: dict[str, Any]) -> None:
        raise KeyError("a bug, not a bad row")

    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    with pytest.raises(KeyError):
        read_jsonl(path, parse)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows = [{"id": "a\nb", "text": 'é "quoted" \u2028'}, {"id": "c", "n": [1, {"x": None}]}]
    path = tmp_path / "new" / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path, dict) == rows
    assert path.read_bytes().count(b"\n") == 2
