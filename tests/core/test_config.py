"""Configuration is strict, and all problems of a file come together."""

from pathlib import Path

import pytest
from pydantic import Field

from afs_mlx.core.config import StrictModel, apply_overrides, load_toml, merged, validate
from afs_mlx.core.errors import AfsError, UsageError


class Inner(StrictModel):
    rank: int = Field(default=8, ge=1)
    alpha: float = 16.0


class Outer(StrictModel):
    title: str
    recipe: Inner = Inner()
    other: Inner | None = None
    versions: dict[str, Inner] = Field(default_factory=dict)
    shots: tuple[Inner, ...] = ()


def test_every_problem_is_listed_with_its_key() -> None:
    value = {"recipe": {"rank": 0, "alpha": "much"}, "versions": {"v2": {"rank": "x"}}, "extra": 1}
    with pytest.raises(AfsError) as caught:
        validate(Outer, value, "my.toml")
    found = caught.value.what.splitlines()
    assert found[0] == "bad configuration (5 problems)"
    for start in ("title: Field required", "recipe.rank: ", "recipe.alpha: ", "versions.v2.rank: ", "extra: there is"):
        assert any(line.strip().startswith(start) for line in found), start
    assert caught.value.where == "my.toml"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"titel": "x"}, "titel: there is no such key; did you mean 'title'?"),
        ({"recipe": {"rnak": 4}}, "recipe.rnak: there is no such key; did you mean 'rank'?"),
        ({"other": {"alpa": 4}}, "other.alpa: there is no such key; did you mean 'alpha'?"),
        ({"versions": {"v2": {"alfa": 4}}}, "versions.v2.alfa: there is no such key; did you mean 'alpha'?"),
        ({"shots": [{}, {"ranks": 4}]}, "shots.1.ranks: there is no such key; did you mean 'rank'?"),
        ({"recipe": {"zzz": 4}}, "recipe.zzz: there is no such key; known: alpha, rank"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(value: dict[str, object], message: str) -> None:
    with pytest.raises(AfsError) as caught:
        validate(Outer, {"title": "t", **value}, "x")
    assert f"  {message}" in caught.value.what.splitlines()


def test_not_a_table_at_all() -> None:
    with pytest.raises(AfsError, match=r"\(top\): "):
        validate(Outer, 5, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(AfsError, match=r"alpha: .*finite"):
        validate(Inner, {"alpha": value}, "x")


def test_records_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().rank = 3  # type: ignore[misc]


def test_broken_toml_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('a = 1\nb = 2\nc = "never closed\n')
    with pytest.raises(AfsError, match=r"not valid TOML: .*line 3") as caught:
        load_toml(path)
    assert caught.value.where == str(path)


def test_a_key_that_stands_twice_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = 1\n\na = 2\n")
    with pytest.raises(AfsError, match=r"not valid TOML: .*line 3"):
        load_toml(path)


def test_toml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="the file does not exist"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(AfsError, match="cannot read"):
        load_toml(tmp_path)
    path = tmp_path / "latin.toml"
    path.write_bytes('a = "caf\xe9"'.encode("latin-1"))
    with pytest.raises(AfsError, match=r"not UTF-8: .* at byte 8"):
        load_toml(path)


def test_toml_from_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 'x'\r\n")
    assert load_toml(path) == {"a": 1, "b": "x"}


def test_overrides_are_toml_values_else_text() -> None:
    given = {"recipe": {"rank": 8, "alpha": 16.0}}
    texts = ["recipe.rank=4", "name=din", "on=true", "recipe.targets=['q_proj']", "rate = 2e-5", "sign=a=b", "none="]
    result = apply_overrides(given, texts)
    assert result == {
        "recipe": {"rank": 4, "alpha": 16.0, "targets": ["q_proj"]},
        "name": "din",
        "on": True,
        "rate": 2e-5,
        "sign": "a=b",
        "none": "",
    }
    assert given == {"recipe": {"rank": 8, "alpha": 16.0}}


def test_overrides_make_tables_and_the_last_wins() -> None:
    assert apply_overrides({}, ["a.b.c=1", "a.b.c=2"]) == {"a": {"b": {"c": 2}}}


@pytest.mark.parametrize("text", ["rank", "=4", " = 4", ""])
def test_an_override_without_key_or_sign(text: str) -> None:
    with pytest.raises(UsageError, match="is not of the form key=value"):
        apply_overrides({}, [text])


def test_an_override_through_a_value() -> None:
    with pytest.raises(UsageError, match="'rank' holds a value, not a table"):
        apply_overrides({"rank": 8}, ["rank.x=1"])


def test_merged_lays_tables_over_tables_and_replaces_the_rest() -> None:
    base = {"a": {"x": 1, "y": 2}, "list": [1, 2], "keep": 0}
    over = {"a": {"y": 3, "z": 4}, "list": [9], "new": {"k": 1}}
    assert merged(base, over) == {"a": {"x": 1, "y": 3, "z": 4}, "list": [9], "keep": 0, "new": {"k": 1}}
    assert base == {"a": {"x": 1, "y": 2}, "list": [1, 2], "keep": 0}
    assert merged({"a": {"x": 1}}, {"a": 5}) == {"a": 5}
    assert merged({"a": 5}, {"a": {"x": 1}}) == {"a": {"x": 1}}
