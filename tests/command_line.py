"""What the tests of the commands share."""

from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def assert_one_line(outcome: Outcome, code: int, *words: str) -> None:
    """Check that a command failed with one clear line that has these words."""
    assert outcome.code == code
    lines = outcome.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in lines[-1]
