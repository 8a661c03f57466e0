"""
Bedrock as AWS's own configuration describes it, by the way that suits the host.

Hosts that give each request a thread call it through boto3. Hosts with an event loop use the
way without threads (:mod:`.aio`) where its extra is installed, and boto3 otherwise.
"""

import contextlib
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.ports import UpstreamCall
from bedrock_proxy_adapters.upstream import boto3
from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream, NativeBoto3Upstream, bedrock_client
from bedrock_proxy_adapters.upstream.endpoint import endpoint_of, region_of
from bedrock_proxy_adapters.upstream.pump import BlockingReply

if TYPE_CHECKING:
    from bedrock_proxy_adapters.upstream.aio import AsyncUpstream

Way: TypeAlias = Literal["auto", "boto3"]


class ConfiguredUpstream:
    """
    The way to Bedrock that the environment describes.

    Args:
        way: ``auto``, or ``boto3`` on event loops too.
        max_streams: Calls that may be open at once; where None, what each way can hold.
        read_timeout: Seconds between bytes after which boto3's sockets give up.

    Attributes:
        region: The region it is called in.

    Raises:
        ConfigurationError: AWS is not configured as it should be.
    """

    kind: Literal["blocking"] = "blocking"

    def __init__(
        self, way: Way = "auto", *, max_streams: int | None = None, read_timeout: float
    ) -> None:
        self.max_streams = max_streams or boto3.MAX_STREAMS
        self.retries = boto3.OUR_RETRIES
        self._read_timeout = read_timeout
        self._lock = threading.Lock()
        self._client: Any = None
        self._threads: Boto3Upstream | None = None
        self._loops: AsyncUpstream | None = None
        # What is wrong with the configuration is said now, not with the first request.
        with _sentences():
            from botocore.session import Session

            self._session = Session()
            self.region = region_of(self._session.get_config_variable("region"))
            if way == "auto":
                self._loops = self._without_threads(max_streams)
            if self._loops is None:
                self.prepare()
            else:
                self._session.get_credentials()

    def open(self, call: UpstreamCall) -> BlockingReply:
        """Begin a call; see :class:`~bedrock_proxy.ports.Upstream`."""
        return self._blocking().open(call)

    def native(self) -> "AsyncUpstream | NativeBoto3Upstream":
        """The same for hosts with an event loop."""
        return self._blocking().native() if self._loops is None else self._loops

    def prepare(self) -> None:
        """
        Make what :meth:`open` needs, which takes a tenth of a second, before the first call.

        Raises:
            ConfigurationError: AWS is not configured as it should be.
        """
        self._blocking()

    def close(self) -> None:
        """Close every connection that is kept."""
        if self._loops is not None:
            self._loops.close()
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _blocking(self) -> Boto3Upstream:
        made = self._threads
        if made is not None:
            return made
        import boto3 as sdk

        with self._lock, _sentences():
            if self._threads is None:
                self._client = bedrock_client(
                    self.region,
                    session=sdk.Session(botocore_session=self._session),
                    max_connections=self.max_streams,
                    read_timeout=self._read_timeout,
                )
                # An old name for a region ("fips-us-east-1") is not what requests are signed for.
                self.region = str(self._client.meta.region_name)
                self._threads = Boto3Upstream(
                    self._client, max_streams=self.max_streams, retries=self.retries
                )
            return self._threads

    def _without_threads(self, max_streams: int | None) -> "AsyncUpstream | None":
        endpoint_url = endpoint_of(self._session, self.region)
        if endpoint_url is None:
            self.prepare()
            endpoint_url = str(self._client.meta.endpoint_url)
        if not _reached_directly(endpoint_url):
            return None
        try:
            from bedrock_proxy_adapters.upstream.aio import MAX_STREAMS, AsyncUpstream
        except ImportError:
            return None
        return AsyncUpstream(
            endpoint_url, self.region, self._session, max_streams=max_streams or MAX_STREAMS
        )


@contextlib.contextmanager
def _sentences() -> Generator[None]:
    """An unknown profile, a region or an endpoint that is none: botocore's words name it."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"AWS is not configured as it should be: {str(error).rstrip('.')}."
        ) from error


def _reached_directly(endpoint_url: str) -> bool:
    """Whether no forward proxy (``HTTPS_PROXY`` and its like) lies between."""
    from botocore.utils import get_environ_proxies

    return endpoint_url.partition(":")[0] not in get_environ_proxies(endpoint_url)
