"""
A fake Bedrock Runtime on loopback.

It speaks Bedrock's wire, so boto3 and the AWS SDKs use it by ``endpoint_url`` alone, and it
does what a :class:`Script` says: answers, delays, faults. It knows nothing of the rest of
this package: what it proves, it proves from outside.

- In tests: the fixture ``bedrock_simulator`` (``simulator.pytest_plugin``), or
  :func:`start_in_thread`.
- As a process: :func:`run`, which is the command ``bedrock-proxy simulate``.
- Under a server of your own: :func:`app`.
"""

from bedrock_proxy_adapters.simulator.asgi import ConnectionCut, SimulatorApp
from bedrock_proxy_adapters.simulator.bedrock import Bedrock
from bedrock_proxy_adapters.simulator.calls import Call, CallTimeout
from bedrock_proxy_adapters.simulator.running import RunningSimulator, run, start_in_thread
from bedrock_proxy_adapters.simulator.scripts import (
    ERROR_STATUS,
    STREAM_EXCEPTIONS,
    Fault,
    Replay,
    Script,
    Tool,
)


def app(script: Script | None = None) -> SimulatorApp:
    """
    The simulated Bedrock as an ASGI application: ``uvicorn --factory …simulator:app``.

    Args:
        script: The default answer; None echoes the prompt.
    """
    return SimulatorApp(Bedrock(script))


__all__ = [
    "ERROR_STATUS",
    "STREAM_EXCEPTIONS",
    "Bedrock",
    "Call",
    "CallTimeout",
    "ConnectionCut",
    "Fault",
    "Replay",
    "RunningSimulator",
    "Script",
    "SimulatorApp",
    "Tool",
    "app",
    "run",
    "start_in_thread",
]
