"""JSON Lines with errors that name the line, all of a file's problems at once."""

import codecs
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.core.files import write_text


def read_jsonl[Row](path: Path, parse: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """Read every row through `parse`; blank lines and a byte order mark are skipped.

    `parse` raises ValueError for a bad row. Raises AfsError with every bad line, or when the file holds no row.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingError("the file does not exist", str(path), "check the path") from error
    except OSError as error:
        raise AfsError(f"cannot read: {error.strerror}", str(path), "check the path and its rights") from error
    rows: list[Row] = []
    found: list[str] = []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(
                line.decode("utf-8"), object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant
            )
            if b"\\u" in line:
                json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair could never be written again
            if not isinstance(value, dict):
                raise ValueError(f"a JSON object is expected, not {type(value).__name__}")
            rows.append(parse(value))
        except json.JSONDecodeError as error:
            found.append(f"line {number}: not valid JSON: {error.msg} at column {error.colno}")
        except UnicodeDecodeError as error:
            found.append(f"line {number}: not UTF-8: {error.reason} at byte {error.start}")
        except UnicodeEncodeError as error:
            found.append(f"line {number}: {error.object[error.start]!a} is half a character")
        except RecursionError:
            found.append(f"line {number}: nested too deeply")
        except ValueError as error:
            found.extend(f"line {number}: {message}" for message in _messages(error))
    if found:
        raise problems(found, "bad rows", str(path), "mend these lines; nothing was read from the file")
    if not rows:
        raise AfsError("the file holds no rows", str(path), "add at least one JSON object per line")
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[0]!r} stands twice in one object")
    return value


def _messages(error: ValueError) -> list[str]:
    """A pydantic error says several things; any other says one."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return [f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors(include_url=False)]
    return [str(error)]
