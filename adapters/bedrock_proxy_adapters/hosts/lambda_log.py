"""
What goes to CloudWatch without anybody configuring it: usage lines on standard output, bare, for
the queries that parse them; what the operator must hear on standard error.

Whoever configures these loggers by name, before or after us, is left alone.
"""

import logging
import os
import sys
from typing import Final, Literal

USAGE: Final = "bedrock_proxy.usage"
OURS: Final = "bedrock_proxy"


class Bare(logging.Handler):
    """
    Writes the message alone, while *logger* has no other handler and the root logger has none
    that writes it to the same log.

    Not a ``StreamHandler``: that would keep the stream that there was when it was made.
    """

    def __init__(self, logger: logging.Logger, stream: Literal["stdout", "stderr"]) -> None:
        super().__init__()
        self._logger = logger
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """See :meth:`logging.Handler.emit`."""
        if self._logger.handlers != [self] or (self._logger.propagate and _printed(record)):
            return  # somebody else says it, in their own way
        if record.name == USAGE != self._logger.name:
            return  # a usage line that somebody has configured, and is not for us to say
        try:
            stream = getattr(sys, self._stream)
            stream.write(self.format(record) + "\n")
            stream.flush()
        except Exception:  # noqa: BLE001 -- as every handler does
            self.handleError(record)


def on_lambda() -> bool:
    """Whether this process is a Lambda function."""
    return bool(os.environ.get("AWS_LAMBDA_FUNCTION_NAME"))


def log_usage_to_stdout() -> None:
    """
    From now on usage lines are on standard output, and nowhere else: the root logger's handlers,
    of which Lambda's own runtime has one, would say them again, behind a prefix. Harmless when
    repeated.
    """
    usage, ours = logging.getLogger(USAGE), logging.getLogger(OURS)
    if usage.handlers or not usage.propagate:
        return
    chosen = usage.level != logging.NOTSET
    if chosen and not usage.isEnabledFor(logging.INFO):
        return  # silenced
    # Whoever chose its level alone means it for the handlers that there are.
    hear = [*ours.handlers, *(logging.getLogger().handlers if chosen else ())]
    if usage.isEnabledFor(logging.INFO) and not all(isinstance(one, Bare) for one in hear):
        return
    usage.setLevel(logging.INFO)
    usage.propagate = False
    usage.addHandler(Bare(usage, "stdout"))


def log_faults_to_stderr() -> None:
    """From now on everything else of ours is on standard error. Harmless when repeated."""
    ours = logging.getLogger(OURS)
    if not ours.handlers:
        ours.addHandler(Bare(ours, "stderr"))


def _printed(record: logging.LogRecord) -> bool:
    """Whether a handler of the root logger writes *record* where Lambda listens."""
    return any(
        one.level <= record.levelno and getattr(one, "stream", None) in (sys.stdout, sys.stderr)
        for one in logging.getLogger().handlers
    )
