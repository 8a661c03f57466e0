"""
The usage log: one compact JSON line per request, to the character as the original system
wrote it, so that existing CloudWatch Insights queries and exports keep working.

Everything richer is in the ledger; nothing is ever added to these lines.
"""

import logging
import sys
from json.encoder import encode_basestring_ascii as _string
from typing import TextIO

from bedrock_proxy.models.names import without_account
from bedrock_proxy.ports import Operation
from bedrock_proxy.usage import UsageRecord

_log = logging.getLogger("bedrock_proxy.usage")

_STREAMS = frozenset(operation.value for operation in Operation if operation.streams)


def usage_line(record: UsageRecord) -> str:
    """
    The line for *record*, without a line end. ``error`` is our code, never Bedrock's text;
    a model that was named by ARN appears without the account.
    """
    timestamp = (record.admitted_at + record.duration_ms) // 1000
    # Written out: json.dumps takes several times as long, and every request waits for it.
    if record.error_code is not None:
        return (
            f'{{"event_type":"bedrock_error","customer_id":{_string(record.customer_id)},'
            f'"model_id":{_string(_model_id(record))},"request_id":{_string(record.request_id)},'
            f'"error":{_string(record.error_code)},"duration_ms":{record.duration_ms},'
            f'"timestamp":{timestamp}}}'
        )
    event = "bedrock_stream" if record.operation in _STREAMS else "bedrock_invoke"
    return (
        f'{{"event_type":"{event}","customer_id":{_string(record.customer_id)},'
        f'"request_id":{_string(record.request_id)},"model_id":{_string(_model_id(record))},'
        f'"input_tokens":{record.input_tokens},"output_tokens":{record.output_tokens},'
        f'"token_count":{record.token_count},"duration_ms":{record.duration_ms},'
        f'"timestamp":{timestamp}}}'
    )


def _model_id(record: UsageRecord) -> str:
    """As the client named it; of an ARN only what it names, for it holds an account's id."""
    if record.model_id.startswith("arn:"):
        return without_account(record.model)
    return record.model_id


def log_usage(record: UsageRecord) -> None:
    """The line to the logger ``bedrock_proxy.usage``, bare, at level INFO: a library prints nothing."""
    if _log.isEnabledFor(logging.INFO):
        _log.info("%s", usage_line(record))


class UsageWriter:
    """
    Writes the line of each record; for servers and Lambda. Never waits for its reader
    (:class:`~bedrock_proxy_adapters.telemetry.lines.Lines`): what nobody reads for long is
    dropped, for the ledger has it, and one line tells how much.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        from bedrock_proxy_adapters.telemetry.lines import Lines

        self._lines = Lines(lambda: sys.stdout if stream is None else stream, _dropped)

    def __call__(self, record: UsageRecord) -> None:
        self._lines.write(usage_line(record))

    def close(self) -> None:
        """Write what is kept, as far as its reader takes it within a second."""
        self._lines.close()


def usage_writer(stream: TextIO | None = None) -> UsageWriter:
    """Something that writes the line to *stream* (stdout where None)."""
    return UsageWriter(stream)


def _dropped(rows: int) -> str:
    return f'{{"event_type":"usage_log_dropped","rows":{rows}}}'
