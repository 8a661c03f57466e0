"""What the operator decided, as far as the flow needs it."""

from attrs import frozen


@frozen(kw_only=True)
class Rules:
    """
    The numbers behind the promises. Times in seconds unless named otherwise.

    Attributes:
        pepper: Keyed into token digests; None where the operator set none.
        region, account: Of Bedrock's endpoint, for ARNs that clients name; None is unknown.
        s3_locations: What the URIs of objects in S3 begin with that customers may have Bedrock read;
            see :mod:`bedrock_proxy.s3`.
        ping_every: Silence after which the client hears a ping.
        first_byte_timeout, idle_timeout: How long Bedrock may take from the call to the first
            event of a stream, and be silent between reads.
        whole_timeout: How long it may take from the call to an answer that comes whole: its first
            byte comes when all of it is ready.
        max_duration: The longest a call may take.
        drain: How long the rest is read for a client that left.
        retries: How often a call may be sent again before its first byte.
        lease_ms: How long a lease lives unless renewed, in milliseconds.
        max_body_bytes, body_timeout: The largest request body, and how long it may take.
        cors_origins: The origins whose pages may call; see :mod:`bedrock_proxy.cors`.
    """

    pepper: bytes | None = None
    region: str | None = None
    account: str | None = None
    s3_locations: tuple[str, ...] = ()
    ping_every: float = 15.0
    first_byte_timeout: float = 120.0
    idle_timeout: float = 120.0
    whole_timeout: float = 600.0
    max_duration: float = 900.0
    drain: float = 30.0
    retries: int = 2
    lease_ms: int = 300_000
    max_body_bytes: int = 20 * 1024 * 1024
    body_timeout: float = 30.0
    cors_origins: tuple[str, ...] = ()
