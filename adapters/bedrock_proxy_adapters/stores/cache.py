"""
A bounded memory of whose token is whose, so that most requests ask no store.
"""

from collections import OrderedDict
from threading import Lock
from typing import Final, Literal

from bedrock_proxy.admission import AdmissionRequest, Barred, Grant, Refusal
from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.store import CACHE_MS

MAX_OWNERS: Final = 10_000
"""How many known tokens are remembered; then the least recently used is forgotten."""

MAX_UNKNOWN: Final = 10_000
"""How many unknown digests are remembered: junk must not push customers out."""


class OwnerCache:
    """
    What ``find_token`` answered in the last 60 seconds.

    Safe to use from several threads. It never makes anything valid: expiry is checked each
    time, and whatever is done for a customer asks the store itself (admission, the standing), which
    knows of revocations at once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[bytes, tuple[int, TokenOwner]] = OrderedDict()
        self._unknown: OrderedDict[bytes, int] = OrderedDict()

    def get(self, digest: bytes, at: int) -> TokenOwner | Literal[False] | None:
        """The owner; False where there was none; None where the store must be asked."""
        with self._lock:
            known = self._known.get(digest)
            if known is not None:
                # A clock that went backwards makes an entry as old as one too far ahead.
                if abs(at - known[0]) < CACHE_MS:
                    self._known.move_to_end(digest)
                    return known[1] if known[1].key.is_valid(at) else False
                del self._known[digest]
            asked = self._unknown.get(digest)
            if asked is not None:
                if abs(at - asked) < CACHE_MS:
                    return False
                del self._unknown[digest]
            return None

    def put(self, digest: bytes, at: int, owner: TokenOwner | None) -> None:
        """Remember what the store said at *at* (epoch milliseconds)."""
        with self._lock:
            if owner is None:
                self._known.pop(digest, None)
                self._unknown[digest] = at
                if len(self._unknown) > MAX_UNKNOWN:
                    self._unknown.popitem(last=False)
            else:
                self._unknown.pop(digest, None)
                self._known[digest] = (at, owner)
                if len(self._known) > MAX_OWNERS:
                    self._known.popitem(last=False)

    def heed(self, request: AdmissionRequest, decision: Grant | Refusal) -> None:
        """Where admission said that the key is gone, forget its token."""
        if type(decision) is not Refusal or decision.reason is not Barred.KEY_GONE:
            return
        with self._lock:
            # Seldom enough to look through all of them: once for each key that is gone.
            for digest, (_, owner) in self._known.items():
                if owner.key.key_id == request.key_id:
                    del self._known[digest]
                    return

    def clear(self) -> None:
        """Forget everything: something was changed in this process."""
        with self._lock:
            self._known.clear()
            self._unknown.clear()
