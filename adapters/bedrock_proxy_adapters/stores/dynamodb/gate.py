"""
Admission and leases in DynamoDB: one conditional update each.
"""

import json
from hashlib import sha256
from typing import Any, Final

from attrs import evolve

from bedrock_proxy import admission
from bedrock_proxy.admission import FRESH, AdmissionRequest, Barred, Grant, Lease, Refusal
from bedrock_proxy.customers import UNLIMITED
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy_adapters.stores.dynamodb.connection import Backoff, Refused, Table
from bedrock_proxy_adapters.stores.dynamodb.expressions import (
    admission_update,
    hold,
    release_update,
    renewal_update,
    settlement_update,
)
from bedrock_proxy_adapters.stores.dynamodb.image import Image
from bedrock_proxy_adapters.stores.dynamodb.packing import (
    SHAPE_BYTES,
    Held,
    lease_name,
    lease_of,
    unpack_lease,
)
from bedrock_proxy_adapters.stores.rows import dump


class ShapeLost(StoreUnavailable):
    """Somebody removed from the table what a lease refers to."""

    def __init__(self, shape: bytes) -> None:
        super().__init__("The customer database has lost what a lease refers to.")
        self.cause = f"the item S#{shape.hex()} is gone from the table, and a lease refers to it"


_SHAPE: Final = (
    *("customer_id", "key_id", "model_id", "model"),
    *("dialect", "operation", "stream", "price_version", "lease_ms"),
)
"""What many leases of a customer have in common."""


def admit(table: Table, request: AdmissionRequest) -> Grant | Refusal:
    """See :meth:`~bedrock_proxy.ports.Gate.admit`."""
    image = table.images.get(request.customer_id)
    is_fresh = image is None
    if image is None:
        image = table.read(request.customer_id)
    name = lease_name(request.request_id)
    wait = Backoff()
    while True:
        if image is None:
            return admission.refused(Barred.KEY_GONE, FRESH, UNLIMITED, 0, request.at)
        found = None if name in image.entries else admission_update(image, request)
        if found is None or isinstance(found, Refusal):
            # What this process remembers may be over: only the table's word counts.
            if not is_fresh:
                image, is_fresh = table.read(request.customer_id), True
                continue
            return _held(table, image, request) if found is None else found
        update = hold(found, shape_of(table, request))
        reply = table.update(request.customer_id, update)
        if not isinstance(reply, Refused):
            return _granted(table, reply, found.grant)
        image, is_fresh = table.after(request.customer_id, reply), True
        wait.once_more()


def _granted(table: Table, image: Image, grant: Grant) -> Grant:
    request = grant.lease.request
    if grant.lease.of_requests.units:
        table.permits.put(request.request_id, image.full_at[0])
    now = max(image.clock, request.at)
    states = admission.limit_states(image.state, image.limits, len(image.live(now)), now)
    return evolve(grant, limits=states)


def _held(table: Table, image: Image, request: AdmissionRequest) -> Grant:
    """The grant whose reply was lost."""
    name = lease_name(request.request_id)
    held = unpack_lease(request.request_id, image.entries[name])
    now = max(image.clock, request.at)
    return Grant(
        lease=full_lease(table, request.request_id, held),
        limits=admission.limit_states(image.state, image.limits, len(image.live(now)), now),
    )


def renew(table: Table, lease: Lease, at: int) -> Lease:
    """See :meth:`~bedrock_proxy.ports.Gate.renew`."""
    table.check_open()
    request = lease.request
    name = lease_name(request.request_id)
    image = table.images.get(request.customer_id)
    is_fresh = image is None or name not in image.entries
    if is_fresh:
        image = table.read(request.customer_id)
    wait = Backoff()
    while image is not None and name in image.entries:
        known = image.entries[name]
        held = unpack_lease(request.request_id, known)
        renewed = admission.renewed(evolve(lease, deadline=held.deadline), at)
        if renewed.deadline == held.deadline:
            if is_fresh:
                return renewed
            # A deadline that is remembered may have been shortened: only the table's counts.
            image, is_fresh = table.read(request.customer_id), True
            continue
        longer = evolve(held, deadline=renewed.deadline)
        reply = table.update(request.customer_id, renewal_update(request.request_id, known, longer))
        if not isinstance(reply, Refused):
            return renewed
        image, is_fresh = table.after(request.customer_id, reply), True
        wait.once_more()
    return admission.renewed(lease, at)


def release(table: Table, request: AdmissionRequest) -> None:
    """See :meth:`~bedrock_proxy.ports.Gate.release`."""
    # Whether it was admitted may be what is not known: the table must say.
    image = table.read(request.customer_id)
    left_at = table.permits.pop(request.request_id)
    name = lease_name(request.request_id)
    wait = Backoff()
    while image is not None and name in image.entries:
        held = unpack_lease(request.request_id, image.entries[name])
        reply = table.update(
            request.customer_id, release_update(image, request.request_id, held, left_at)
        )
        if not isinstance(reply, Refused):
            return
        image = table.after(request.customer_id, reply)
        wait.once_more()


def settle(
    table: Table, image: Image | None, request_id: str, tokens: int, cost_nanousd: int, at: int
) -> Image | None:
    """
    Put the true usage in the place of an open lease, if there is one; the image afterwards.
    """
    name = lease_name(request_id)
    wait = Backoff()
    while image is not None and name in image.entries:
        held = unpack_lease(request_id, image.entries[name])
        reply = table.update(
            image.customer_id,
            settlement_update(image, request_id, held, tokens, cost_nanousd, at),
        )
        if not isinstance(reply, Refused):
            image = reply
            break
        image = table.after(image.customer_id, reply)
        wait.once_more()
    table.permits.pop(request_id)
    return image


# --- shapes -------------------------------------------------------------------------------------


def shape_of(table: Table, request: AdmissionRequest) -> bytes:
    """
    The name of what *request* has in common with others; it is written if it was not yet.

    Names are short, so that two texts may have the same one: the second then gets another.
    """
    text = dump([getattr(request, field) for field in _SHAPE])
    known = table.shapes.get(text)
    if known is not None:
        assert isinstance(known, bytes)
        return known
    for salt in range(256):
        name = sha256(bytes((salt,)) + text.encode()).digest()[:SHAPE_BYTES]
        item = _shape_key(name) | {"body": {"S": text}}
        there = table.get(_shape_key(name)) or table.put(item, "attribute_not_exists(pk)")
        if there is None or there.get("body") == {"S": text}:
            table.shapes.put(text, name)
            table.shapes.put(name, text)
            return name
    raise AssertionError("256 names were taken")


def full_lease(table: Table, request_id: str, held: Held) -> Lease:
    """
    The lease with what its shape says.

    Raises:
        ShapeLost: Its shape is gone.
    """
    text = table.shapes.get(held.shape)
    if text is None:
        item = table.get(_shape_key(held.shape))
        if item is None:
            raise ShapeLost(held.shape)
        text = item["body"]["S"]
        table.shapes.put(held.shape, text)
    values: dict[str, Any] = dict(zip(_SHAPE, json.loads(text), strict=True))
    request = AdmissionRequest(
        request_id=request_id,
        at=held.at,
        input_tokens=held.input_tokens,
        output_tokens=held.output_tokens,
        cost_nanousd=held.cost_nanousd,
        client_request_id=held.client_request_id,
        **values,
    )
    return lease_of(held, request)


def _shape_key(name: bytes) -> dict[str, Any]:
    return {"pk": {"S": f"S#{name.hex()}"}, "sk": {"S": "S"}}
