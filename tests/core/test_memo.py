"""Values that are made once for each key."""

from hypothesis import given
from hypothesis import strategies as st

from bedrock_proxy.memo import Memo


def test_a_value_is_made_once_for_each_key() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    memo = Memo(make)
    assert [memo[key] for key in ("a", "b", "a", "b", "a")] == ["A", "B", "A", "B", "A"]
    assert made == ["a", "b"]


@given(st.lists(st.integers(0, 9)), st.integers(1, 4))
def test_it_is_always_right_and_never_larger_than_it_may_be(keys: list[int], size: int) -> None:
    memo = Memo[int, int](lambda key: key * key, size)
    for key in keys:
        assert memo[key] == key * key
        assert len(memo) <= size
