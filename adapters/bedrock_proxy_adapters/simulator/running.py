"""
A running simulator: in a thread of this process, or as this process.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from bedrock_proxy_adapters.simulator.bedrock import DEFAULT_KEPT_CALLS, Bedrock
from bedrock_proxy_adapters.simulator.scripts import Script
from bedrock_proxy_adapters.simulator.server import listen

if TYPE_CHECKING:
    from typing import Self

    from botocore.config import Config
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient

DEFAULT_PORT: Final = 9090
REGION: Final = "us-east-1"
_KEY: Final = "simulated"


@lru_cache(maxsize=1)
def _session() -> Any:
    """A boto3 session of our own; untyped, for the stubs of other services are not installed."""
    import boto3

    return boto3.Session(aws_access_key_id=_KEY, aws_secret_access_key=_KEY, region_name=REGION)


class RunningSimulator(Bedrock):
    """
    A simulated Bedrock that listens on loopback, in a thread of its own.

    Attributes:
        url: Its address: the ``endpoint_url`` of a client.
    """

    def __init__(
        self,
        default: Script | None = None,
        *,
        models: Mapping[str, str] | None = None,
        keep: int = DEFAULT_KEPT_CALLS,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(default, models=models, keep=keep)
        self.url = ""
        self._clients: list[BedrockRuntimeClient] = []
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(
            target=self._run, args=(host, port), name="bedrock-simulator", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def client(self, config: "Config | None" = None) -> "BedrockRuntimeClient":
        """
        A boto3 client for this simulator. Its credentials are made up and its region is
        fixed: nothing of the machine's own configuration is used. One attempt a call, unless
        *config* says otherwise. It is closed with the simulator.
        """
        from botocore.config import Config

        fixed = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            proxies={},
            read_timeout=30,
            connect_timeout=10,
            max_pool_connections=50,
        )
        client: BedrockRuntimeClient = _session().client(
            "bedrock-runtime",
            endpoint_url=self.url,
            config=fixed if config is None else fixed.merge(config),
        )
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close the clients, drop every connection, stop listening, end the thread."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> "Self":
        """Give the simulator itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _run(self, host: str, port: int) -> None:
        asyncio.run(self._serve(host, port))

    async def _serve(self, host: str, port: int) -> None:
        try:
            listener = await listen(self, host, port)
        except OSError as failure:
            self._failure = failure
            self._ready.set()
            return
        self.url = listener.url
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await listener.close()


def start_in_thread(
    script: Script | None = None,
    *,
    models: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> RunningSimulator:
    """
    Start a simulator in a thread of its own and return once it listens. Close it, or use it
    in a ``with`` statement.

    Args:
        script: The default answer; None echoes the prompt.
        models: See :class:`Bedrock`.
        host: Where to listen.
        port: 0 takes a free one.

    Raises:
        OSError: The port is taken.
    """
    return RunningSimulator(script, models=models, host=host, port=port)


def run(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    script: Script | None = None,
    models: Mapping[str, str] | None = None,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM, on uvloop where it is installed.

    Args:
        host: Where to listen.
        port: 0 takes a free one.
        script: The default answer; None echoes the prompt.
        models: See :class:`Bedrock`.
        on_ready: Called with the address once it listens.

    Raises:
        OSError: The port is taken.
    """
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve_until_signalled(Bedrock(script, models=models), host, port, on_ready))


async def _serve_until_signalled(
    bedrock: Bedrock, host: str, port: int, on_ready: Callable[[str], object] | None
) -> None:
    listener = await listen(bedrock, host, port)
    stop = asyncio.Event()
    with _signals(stop):
        if on_ready is not None:
            on_ready(listener.url)
        await stop.wait()
        await listener.close()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Generator[None]:
    """SIGINT and SIGTERM set *stop*; they are given back afterwards."""
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
            taken.append(number)
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
