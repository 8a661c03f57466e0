"""
What botocore's and urllib3's exceptions mean to the proxy.
"""

import json

from bedrock_proxy.ports import Loggable, Operation, Trouble, UpstreamHead, UpstreamUnreachable
from bedrock_proxy_adapters.causes import cause_of


def trouble(error: Exception) -> UpstreamUnreachable:
    """What kept the answer away. Its detail has none of *error*'s own words."""
    if isinstance(error, UpstreamUnreachable):
        return error
    return UpstreamUnreachable(_kind(error), Loggable(cause_of(error)))


def _kind(error: Exception) -> Trouble:
    from botocore import exceptions as b
    from urllib3 import exceptions as u

    if isinstance(error, (b.ReadTimeoutError, u.ReadTimeoutError, TimeoutError)):
        return Trouble.TIMEOUT
    # Also a connection that took too long: nothing was sent, so it may be tried again.
    if isinstance(error, b.ConnectionError):
        return Trouble.UNREACHABLE
    if isinstance(
        error,
        (
            b.HTTPClientError,
            b.ResponseStreamingError,
            b.IncompleteReadError,
            u.HTTPError,
            OSError,
        ),
    ):
        return Trouble.BROKEN
    # A ClientError that is no answer of Bedrock's comes from the service that was asked
    # for credentials.
    if isinstance(
        error,
        (
            b.ClientError,
            b.NoCredentialsError,
            b.PartialCredentialsError,
            b.CredentialRetrievalError,
            b.TokenRetrievalError,
            b.NoAuthTokenError,
            b.SSOError,
            b.MetadataRetrievalError,
            b.RefreshWithMFAUnsupportedError,
            b.ProfileNotFound,
            b.ConfigNotFound,
            b.InfiniteLoopConfigError,
        ),
    ):
        return Trouble.CREDENTIALS
    return Trouble.REJECTED


def answer_of_error(error: Exception, operation: Operation) -> tuple[UpstreamHead, bytes] | None:
    """Bedrock's answer behind a ClientError of *operation*; None for any other exception."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError) or error.operation_name != operation:
        return None
    fault = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    headers = (
        ("content-type", "application/json"),
        ("x-amzn-errortype", fault.get("Code", "")),
    )
    return UpstreamHead(status, headers), json.dumps({"message": fault.get("Message", "")}).encode()
