"""The log line that stands for a usage row which neither the store nor a spool took."""

import json
from typing import Final

from attrs import evolve

from bedrock_proxy.admission import Lease
from bedrock_proxy.models.names import without_account
from bedrock_proxy.usage import UsageRecord

UNSETTLED: Final = "unsettled usage row: "
"""How the line begins; the row follows as JSON."""


def unsettled_line(record: UsageRecord, lease: Lease) -> str:
    """
    The line for *record*: what a log may hold of it, and enough to enter it without its lease
    (``bedrock-proxy enter``). A model named by ARN appears as its resource alone, and nothing
    that the client chose the words of appears at all.
    """
    row = evolve(
        record,
        model_id=without_account(record.model_id),
        model=without_account(record.model),
        # The store looks for the row under the time of its admission.
        admitted_at=lease.request.at,
        client_request_id=None,
    )
    return UNSETTLED + json.dumps(row.as_dict())
