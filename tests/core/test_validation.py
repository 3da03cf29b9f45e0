from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from wpn_bench.core.validation import MOST_SHOWN, Count, as_user_error
from wpn_bench.errors import UserError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: Count = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner = Inner()


def refused(raw: dict[str, Any], **how: Any) -> UserError:
    with pytest.raises(UserError) as caught, as_user_error("file.yaml", "see the docs", **how):
        Outer.model_validate(raw)
    return caught.value


def test_the_message_names_the_field_what_is_wrong_and_what_was_given() -> None:
    error = refused({"name": "a", "inner": {"steps": 0}})
    assert error.problem == "file.yaml: inner.steps: Input should be greater than or equal to 1 (given: 0)"
    assert error.hint == "see the docs"
    error = refused({"name": "a", "inner": {"steps": True}}, noun="setting")
    assert error.problem == "file.yaml: setting inner.steps: give a whole number, not true or false (given: True)"


def test_a_missing_field_has_no_given_value() -> None:
    assert refused({}).problem == "file.yaml: name: Field required"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    unknown = {"unknown_kind": "setting", "known": Outer.model_fields}
    assert "unknown setting 'nam'" in str(refused({"name": "a", "nam": 1}, **unknown))
    assert "did you mean 'name'" in str(refused({"name": "a", "nam": 1}, **unknown))
    # Without a word for it, it is like any other error.
    assert refused({"name": "a", "nam": 1}).problem.startswith("file.yaml: nam: Extra inputs")


@pytest.mark.parametrize("value", ["x" * 10_000, 10**5000, list(range(1000))], ids=["text", "number", "list"])
def test_a_long_value_is_cut(value: object) -> None:
    given = refused({"name": "a", "inner": {"steps": value}}).problem.partition("(given: ")[2]
    assert 0 < len(given) <= MOST_SHOWN + 1


def test_text_that_is_no_json_is_not_shown() -> None:
    said = r"^card\.json is no card: Invalid JSON[^x]*; make one$"
    with pytest.raises(UserError, match=said), as_user_error("card.json is no card", "make one"):
        Outer.model_validate_json(json.dumps({"name": "xxxx"})[:-3])
