"""
The flow: one request from arrival to settlement.

A generator that *says* (yields a Head, then bytes) and *asks* (yields effects); it never
does. Every path through it that was admitted ends in exactly one :class:`Finish` (or one
:class:`Release`, where Bedrock was never called).
"""

import json

from bedrock_proxy import cors, front, limits, routes, s3, tokens
from bedrock_proxy.admission import AdmissionRequest, Refusal
from bedrock_proxy.carry import carry, say_terminal
from bedrock_proxy.course import Course
from bedrock_proxy.customers import CustomerStatus, TokenOwner
from bedrock_proxy.dialects.dialect import Call, Dialect
from bedrock_proxy.drive import Ending, Interruption, Shutdown, insist
from bedrock_proxy.effects import (
    SECONDS,
    Admit,
    FindStanding,
    FindToken,
    Finish,
    Flow,
    Now,
    Ready,
    ReceiveBody,
    Release,
    Report,
    ReportFailing,
    ReportFault,
    Spool,
    TakeStream,
    ask,
)
from bedrock_proxy.errors import (
    ClientFault,
    Code,
    ProxyError,
    StoreUnavailable,
    Unavailable,
)
from bedrock_proxy.http import Head, Request
from bedrock_proxy.models.names import check_arn, not_allowed
from bedrock_proxy.ports import Instant
from bedrock_proxy.rules import Rules
from bedrock_proxy.sent import Sent
from bedrock_proxy.usage import Outcome


def exchange(
    request: Request, rules: Rules, spoken: Dialect | None = None
) -> Flow[ProxyError | None]:
    """
    Serve one request.

    Args:
        spoken: Who understands the request and words its answer, where that is not for the
            route to say: the caller is a program in this process.

    Returns:
        The terminal error that the reply ended in after its head had gone out, or None.
    """
    dialect = routes.dialect_of(request) if spoken is None else spoken
    try:
        front.check_head(request)
        found = routes.find(request)
        if found.route.gate is routes.Gate.PUBLIC:
            yield from _public(request, rules, found.route.operation)
            return None
        return (yield from _admitted(request, rules, found, dialect))
    except Interruption as reason:
        # Before the head: nothing was spent that is not already settled.
        if isinstance(reason, Ending):
            yield from _refuse(request, rules, dialect, reason.error)
    except ProxyError as error:
        if isinstance(error, StoreUnavailable):
            yield from ask(ReportFailing(request.request_id, error))
        yield from _refuse(request, rules, dialect, _bare(error))
    except Exception as error:  # noqa: BLE001 -- a defect of ours must still be an answer
        yield from ask(ReportFault(request.request_id, error))
        yield from _refuse(request, rules, dialect, _internal())
    return None


# --- what needs no customer -----------------------------------------------------------------


def _public(request: Request, rules: Rules, operation: str) -> Flow[None]:
    if operation == "preflight":
        yield from _say_all(cors.preflight(request, rules.cors_origins))
        return
    ready = operation != "ready" or (yield from ask(Ready()))
    body = json.dumps({"status": "ok" if ready else "stopping"}).encode() + b"\n"
    headers = (
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        *cors.headers(request, rules.cors_origins),
    )
    yield from _say_all(
        Head(200 if ready else 503, headers), body if request.method != "HEAD" else b""
    )


def _say_all(head: Head, body: bytes = b"") -> Flow[None]:
    """A short answer that is at hand: saying it is the quickest way to end."""
    try:
        yield from insist(head)
        yield from insist(body)
    except Interruption:
        return


def _refuse(request: Request, rules: Rules, dialect: Dialect, error: ProxyError) -> Flow[None]:
    reply = dialect.refusal(error, request.request_id)
    said = [
        *reply.headers,
        ("content-length", str(len(reply.body))),
        ("x-request-id", request.request_id),
        *error.headers,
    ]
    if error.retry_after is not None:
        said.append(("retry-after", str(error.retry_after)))
    if _is_malformed(error) and not any(name == "connection" for name, _ in said):
        said.append(("connection", "close"))
    if error.code is not Code.ORIGIN_NOT_ALLOWED:
        said += cors.headers(request, rules.cors_origins)
    yield from _say_all(
        Head(reply.status, tuple(said)), reply.body if request.method != "HEAD" else b""
    )


def _bare(error: ProxyError) -> ProxyError:
    """
    *error* as an answer, without where it comes from: the frames in which it was raised know it,
    and what knows itself stays in memory until the collector comes.
    """
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _is_malformed(error: ProxyError) -> bool:
    """
    Whether the request itself is at fault. What follows it on the connection is not served:
    it may be a part of this one (M84).
    """
    return isinstance(error, ClientFault) and error.upstream_type is None and error.original is None


def _internal() -> ProxyError:
    return Unavailable("Something went wrong inside the proxy; its operator has been told.")


# --- from token to lease --------------------------------------------------------------------


def _admitted(
    request: Request, rules: Rules, found: routes.Found, dialect: Dialect
) -> Flow[ProxyError | None]:
    arrived = yield from ask(Now())
    owner = yield from _owner(request, rules, arrived)
    if found.route.gate is routes.Gate.AUTHENTICATED:
        yield from _standing(request, rules, owner, arrived)
        return None
    body = yield from ask(ReceiveBody(rules.max_body_bytes, rules.body_timeout))
    if not body:
        front.check_whole(request)
    call = dialect.call(request, body, found.route.operation, found.model)
    for name in (call.model, *call.guardrails):
        check_arn(name, region=rules.region, account=rules.account)
        if owner.models is not None and name.canonical not in owner.models:
            raise not_allowed()
    if call.s3_locations:
        s3.check(call.s3_locations, rules.s3_locations)
    if not (yield from ask(TakeStream())):
        raise Unavailable("The proxy is carrying as many streams as it can.", Code.OVERLOADED)
    wanted = _admission(request, rules, call, owner, dialect, arrived)
    try:
        grant = yield from ask(Admit(wanted))
    except BaseException:
        # It may have been done all the same: take it back, if the store can be asked at all.
        yield from _release(wanted)
        raise
    if isinstance(grant, Refusal):
        raise limits.refused(grant, wanted)
    renew_at = arrived.monotonic + rules.lease_ms / 2000
    sent = Sent(call.upstream)
    course = Course(
        request, rules, call, arrived, grant.lease, owner.key, grant.limits, renew_at, sent
    )
    del body, call  # this frame lasts as long as the answer; the course lets go of them
    return (yield from _settled(course))


def _owner(request: Request, rules: Rules, arrived: Instant) -> Flow[TokenOwner]:
    """Whose token it is. The one gate of every route that is not public."""
    token = front.credential(request)
    if not tokens.check_shape(token):
        raise front.unauthorized()
    front.check_media(request, rules.max_body_bytes)
    owner = yield from ask(FindToken(tokens.digest(token, rules.pepper), arrived.epoch_ms))
    if owner is None:
        raise front.unauthorized()
    if owner.status is not CustomerStatus.ACTIVE:
        raise limits.disabled()
    return owner


def _standing(request: Request, rules: Rules, owner: TokenOwner, arrived: Instant) -> Flow[None]:
    """
    ``GET /v1/usage``: the caller's own usage, and what remains.

    The owner may be what a store remembers. What a request learns from admission, this one learns
    from the standing: whether the token is still good for anything (I12).
    """
    standing = yield from ask(FindStanding(owner.customer_id, arrived.epoch_ms))
    if owner.key.key_id not in standing.keys:
        raise front.unauthorized()
    if standing.status is not CustomerStatus.ACTIVE:
        raise limits.disabled()
    body = limits.standing_body(standing, arrived.epoch_ms)
    headers = (
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-request-id", request.request_id),
        *limits.headers(standing.limits),
        *limits.deprecation(owner.key),
        *cors.headers(request, rules.cors_origins),
    )
    yield from _say_all(Head(200, headers), body)


def _admission(
    request: Request,
    rules: Rules,
    call: Call,
    owner: TokenOwner,
    dialect: Dialect,
    arrived: Instant,
) -> AdmissionRequest:
    return AdmissionRequest(
        request_id=request.request_id,
        customer_id=owner.customer_id,
        key_id=owner.key.key_id,
        model_id=call.model.raw,
        model=call.model.canonical,
        dialect=dialect.name,
        operation=str(call.upstream.operation),
        stream=call.stream,
        at=arrived.epoch_ms,
        input_tokens=call.estimate.input_tokens or 0,
        output_tokens=call.estimate.output_tokens or 0,
        cost_nanousd=None,
        price_version=None,
        client_request_id=front.client_request_id(request),
        lease_ms=rules.lease_ms,
    )


def _release(wanted: AdmissionRequest) -> Flow[None]:
    try:
        yield from ask(Release(wanted))
    except StoreUnavailable:
        return  # the lease runs out by itself, and a reaper settles it


# --- from lease to ledger -------------------------------------------------------------------


def _settled(course: Course) -> Flow[ProxyError | None]:
    """Carry the call, and settle it whatever happens."""
    refusal: ProxyError | None = None
    try:
        yield from carry(course)
    except ProxyError as error:
        refusal = error
        course.failed(error)
    except Exception as error:  # noqa: BLE001 -- a defect of ours must still be settled
        refusal = _internal()
        course.failed(refusal)
        yield from ask(ReportFault(course.request.request_id, error))
    except BaseException:
        # The thread or the task is being torn down: settle, and let it go on.
        course.failed(Shutdown().error, Outcome.SHUTDOWN)
        yield from _finished(course)
        raise
    if refusal is not None and refusal.cause:
        model = course.lease.request.model
        yield from ask(ReportFailing(course.request.request_id, refusal, model))
    if refusal is not None and course.head_said:
        yield from say_terminal(course, refusal)
        yield from _finished(course)
        return _bare(refusal)
    yield from _finished(course)
    if refusal is not None:
        refusal.headers = (*refusal.headers, *course.own_headers())
        if course.upstream is not None:
            refusal.aws_request_id = course.upstream.first("x-amzn-requestid")
        raise refusal
    return None


def _finished(course: Course) -> Flow[None]:
    """The ledger row and the settlement, exactly once; the row is never lost."""
    if course.attempts == 0:
        yield from _release(course.lease.request)
        return
    now: float = yield SECONDS
    record = course.record(now)
    try:
        yield from ask(Finish(record, course.lease))
    except Exception as error:  # noqa: BLE001 -- whatever the store says, the row must survive
        request_id = course.request.request_id
        if not isinstance(error, StoreUnavailable):
            yield from ask(ReportFault(request_id, error))
        yield from ask(Spool(record, course.lease))
        if isinstance(error, StoreUnavailable):
            yield from ask(ReportFailing(request_id, error, record.model, settling=True))
    except BaseException:
        # Torn down while the store was asked: a row that is kept twice counts once.
        yield from ask(Spool(record, course.lease))
        yield from ask(Report(record))
        raise
    yield from ask(Report(record))
