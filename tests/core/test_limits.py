"""What clients are told about their limits."""

import pytest

from bedrock_proxy import limits
from bedrock_proxy.admission import Limit, Refusal


@pytest.mark.parametrize(
    ("retry_after", "advice"),
    [
        (1, "; try again in 1 second."),
        (30, "; try again in 30 seconds."),
        (None, "; this request alone is larger than it allows."),
    ],
)
def test_a_refusal_names_the_limit_and_says_what_to_do(
    retry_after: int | None, advice: str
) -> None:
    error = limits.refused(
        Refusal(reason=Limit.REQUESTS_PER_MINUTE, retry_after=retry_after, cap=60)
    )
    assert f"The limit of 60 requests per minute has been reached{advice}" == str(error)
    assert (retry_after, retry_after is not None) == (error.retry_after, error.retryable)
