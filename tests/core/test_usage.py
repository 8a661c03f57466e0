"""Token counts: "not said" and zero are two things, whichever count they are said of."""

from itertools import product

import pytest
from attrs import astuple, fields

from bedrock_proxy.usage import Usage

COUNTS = tuple(field.name for field in fields(Usage))


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("old", "new"), tuple(product((None, 0, 7), (None, 0, 5))))
def test_a_later_count_takes_the_place_of_its_own_kind_alone(
    name: str, old: int | None, new: int | None
) -> None:
    before = Usage(**(dict.fromkeys(COUNTS, 3) | {name: old}))
    after = before.updated(Usage(**{name: new}))
    expected = old if new is None else new
    assert astuple(after) == tuple(expected if each == name else 3 for each in COUNTS)
    assert Usage(**{name: new}).completed(before) == after


@pytest.mark.parametrize("name", COUNTS)
def test_zero_said_of_any_kind_is_something_said(name: str) -> None:
    assert Usage().is_empty
    assert not Usage(**{name: 0}).is_empty


def test_every_kind_counts_once() -> None:
    assert Usage(1, 20, 300, 4_000, 50_000).token_count == 54_321
    for index, name in enumerate(COUNTS):
        assert Usage(**{name: index + 1}).token_count == index + 1
    assert Usage().token_count == 0
