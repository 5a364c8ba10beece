"""Strict configuration: unknown keys are errors, all problems of a file are reported together."""

import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from afs_mlx.core.errors import AfsError, UsageError, closest, problems


class StrictModel(BaseModel):
    """A frozen record that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a syntax error names its line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise AfsError("the file does not exist", str(path), "check the path") from error
    except UnicodeDecodeError as error:
        raise AfsError(
            f"not UTF-8: {error.reason} at byte {error.start}", str(path), "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise AfsError(f"cannot read: {error.strerror}", str(path), "check the path and its rights") from error
    except tomllib.TOMLDecodeError as error:
        raise AfsError(f"not valid TOML: {error}", str(path), "mend the line named above") from error


def validate[Model: BaseModel](model: type[Model], value: Any, where: str) -> Model:
    """Build `model` from plain data; raises AfsError with every problem, keys in dotted form."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = [_problem(model, e["loc"], e["type"], e["msg"]) for e in error.errors(include_url=False)]
        raise problems(found, "bad configuration", where, "mend these keys") from error


def apply_overrides(value: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `a.b=v` assignments, v read as a TOML value and else as text. Returns a new dictionary."""
    result = _copied(value)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"{override!r} is not of the form key=value", "--set", "write for example --set epochs=2")
        *parents, last = key.strip().split(".")
        table = result
        for parent in parents:
            inner = table.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{parent!r} holds a value, not a table", f"--set {override}", "shorten the key")
            table = inner
        table[last] = _toml_value(text.strip())
    return result


def merged(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`base` with `overlay` laid over it key by key, tables merged, everything else replaced."""
    result = dict(base)
    for key, value in overlay.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _copied(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(inner) if isinstance(inner, dict) else inner for key, inner in value.items()}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _problem(model: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(map(str, location)) or "(top)"
    if kind == "extra_forbidden":
        known = sorted(_table_at(model, location[:-1]).model_fields)
        return f"{key}: there is no such key; {closest(str(location[-1]), known)}"
    return f"{key}: {message}"


def _table_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model at a place inside `model`; keys of dictionaries and indices of lists are passed over."""
    for part in location:
        if field := model.model_fields.get(str(part)):
            model = _model_in(field.annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
