"""Experts, versions, bases and cases as types."""

from typing import Any

import pytest
from pydantic import ValidationError

from afs_mlx.schema.base import Base
from afs_mlx.schema.case import Case, CaseResult
from afs_mlx.schema.expert import NAME, Expert, ExpertVersion, Shot, opening_turns
from afs_mlx.schema.message import Message

LORA = {"kind": "lora"}


def expert(**values: Any) -> Expert:
    return Expert.model_validate({"title": "t", **values})


def test_the_last_version_is_meant_unless_one_is_named() -> None:
    assert expert().default_version == ""
    assert expert(versions={"v2": LORA, "v1": LORA}).default_version == "v1"
    assert expert(versions={"v2": LORA, "v1": LORA}, default="v2").default_version == "v2"


def test_a_default_that_is_no_version() -> None:
    with pytest.raises(ValidationError, match=r"default 'v3' is not one of the versions: v1, v2"):
        expert(versions={"v1": LORA, "v2": LORA}, default="v3")
    with pytest.raises(ValidationError, match=r"default 'v3' is not one of the versions: none"):
        expert(default="v3")


@pytest.mark.parametrize("name", ["V2", "v_2", "2", "", "v2-", "-v2", "v--2", "v2 ", "v2\n", "a/b", "..", "vé"])
def test_names_that_would_not_do_as_a_folder_or_tag(name: str) -> None:
    assert not NAME.match(name)
    with pytest.raises(ValidationError, match="write lower-case letters, digits and single hyphens"):
        expert(versions={name: LORA})


@pytest.mark.parametrize("name", ["v2", "v3-fewshot", "din", "farore-afs", "a1-2"])
def test_names_that_do(name: str) -> None:
    assert NAME.match(name)


@pytest.mark.parametrize(
    "version",
    [
        {"kind": "fewshot"},
        {"kind": "lora", "shots": [{"user": "q", "assistant": "a"}]},
        {"kind": "prompt", "shots": [{"user": "q", "assistant": "a"}]},
    ],
)
def test_shots_belong_to_fewshot_versions(version: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="a fewshot version needs shots, and only a fewshot version has them"):
        ExpertVersion.model_validate(version)


@pytest.mark.parametrize("threshold", [-0.1, 1.01, 70, float("nan")])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ValidationError, match="threshold"):
        ExpertVersion.model_validate({"kind": "lora", "threshold": threshold})


def test_opening_turns() -> None:
    assert opening_turns("", ()) == []
    assert opening_turns("s", [Shot(user="q", assistant="a")]) == [
        Message(role="system", content="s"),
        Message(role="user", content="q"),
        Message(role="assistant", content="a"),
    ]


def test_a_lineage_is_every_name_in_lower_case() -> None:
    base = Base(
        id="b", source="hub", layout="qwen2", parameters=1, license="mit", hub="Org/B-4bit", aliases=("Other/B-bnb",)
    )
    assert base.lineage == {"b", "org/b-4bit", "other/b-bnb"}


def test_a_case_result_may_be_undecided_but_not_unexplained() -> None:
    assert CaseResult(id="a", answer="x", passed=None, why="not verified").passed is None
    with pytest.raises(ValidationError, match="why"):
        CaseResult.model_validate({"id": "a", "answer": "x", "passed": True})
    with pytest.raises(ValidationError, match="answer"):
        Case.model_validate({"id": "a", "question": "q", "answer": "the model must not see it"})
