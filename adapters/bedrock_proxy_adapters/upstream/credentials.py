"""
Who calls Bedrock: botocore's credentials, for an event loop that must never wait for them.

A credential provider may read files, run a program or ask a metadata service, and a
refresh may too. All of that happens on a thread, once for all who wait; what is valid is
at hand at once, and is renewed beside the requests while it still is.
"""

import asyncio
from typing import Any, Final

from bedrock_proxy.ports import Loggable, Trouble, UpstreamUnreachable
from bedrock_proxy_adapters.upstream.failures import trouble
from bedrock_proxy_adapters.upstream.signing import Keys

MUST_REFRESH: Final = 600
"""
Seconds of life below which keys are not used any more before they are renewed; botocore's
own ``RefreshableCredentials`` has the same bound. It begins to renew at fifteen minutes.
"""


class Credentials:
    """
    The credentials that *session* finds, for one event loop.

    Args:
        session: A ``botocore`` session.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._found: Any = None
        self._keys: Keys | None = None
        self._frozen: Any = None
        self._fetching: asyncio.Task[None] | None = None

    def at_hand(self) -> Keys | None:
        """Keys that may be used now; None where :meth:`fetch` must be awaited first."""
        found = self._found
        if found is None:
            return None
        refresh_needed = getattr(found, "refresh_needed", None)
        if refresh_needed is not None and refresh_needed():
            if refresh_needed(MUST_REFRESH):
                return None
            self._begin()
            return self._keys
        # Keys that another thread has renewed (the boto3 client shares the session's) come
        # along here; nothing waits, for nothing is due.
        return self._take()

    async def fetch(self) -> Keys:
        """
        The keys, once there are some.

        Raises:
            UpstreamUnreachable: ``credentials``: there are none, or they cannot be renewed.
        """
        # Several may wait for one, and one that is cancelled must not take it from the rest.
        try:
            await asyncio.shield(self._begin())
        except UpstreamUnreachable as error:
            raise UpstreamUnreachable(error.trouble, error.detail) from None
        assert self._keys is not None
        return self._keys

    def _begin(self) -> "asyncio.Task[None]":
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, task: "asyncio.Task[None]") -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # whoever waited has heard it; a renewal beside them is tried again

    async def _fetch(self) -> None:
        try:
            await asyncio.to_thread(self._freeze)
        except Exception as error:  # noqa: BLE001 -- providers raise whatever they meet
            raise trouble(error) from None

    def _freeze(self) -> None:
        """On a thread: find, renew and freeze."""
        found = self._found
        if found is None:
            found = self._session.get_credentials()
            if found is None:
                raise UpstreamUnreachable(
                    Trouble.CREDENTIALS, Loggable("no AWS credentials were found")
                )
            found.get_frozen_credentials()
            self._found = found
        self._take()

    def _take(self) -> Keys:
        frozen = self._found.get_frozen_credentials()
        known = self._keys
        if known is not None and frozen == self._frozen:
            return known
        if not frozen.access_key or not frozen.secret_key:
            raise UpstreamUnreachable(
                Trouble.CREDENTIALS, Loggable("the AWS credentials are incomplete")
            )
        self._keys = fresh = Keys(frozen.access_key, frozen.secret_key, frozen.token or None)
        self._frozen = frozen
        return fresh
