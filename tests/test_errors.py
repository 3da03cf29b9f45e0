from __future__ import annotations

import pickle

import pytest

from wpn_bench.errors import EXIT_FAILED, EXIT_USER, JobFailed, UserError, WpnBenchError


def test_a_user_error_is_one_line_with_a_hint() -> None:
    error = UserError("the file\n  x.jsonl\tis odd", "mend it,\nthen try again")
    assert str(error) == "the file x.jsonl is odd; mend it, then try again"
    assert (error.problem, error.hint) == ("the file x.jsonl is odd", "mend it, then try again")


@pytest.mark.parametrize(("error", "code"), [(UserError("a", "b"), EXIT_USER), (JobFailed("a"), EXIT_FAILED)])
def test_exit_codes(error: WpnBenchError, code: int) -> None:
    assert isinstance(error, WpnBenchError)
    assert error.exit_code == code


def test_a_user_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(UserError("the file is odd", "mend it")))
    assert (type(error), error.problem, error.hint) == (UserError, "the file is odd", "mend it")
