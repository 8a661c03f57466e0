"""
Bare translators to measure against: Bedrock's event stream in, Server-Sent Events out, with no
authentication, no limits, no ledger, no timeouts and no errors. Nobody should serve these.
"""

import json
import struct
from binascii import a2b_base64
from json.encoder import encode_basestring_ascii as quoted
from zlib import crc32

_LENGTHS = struct.Struct(">II")
_CRC = struct.Struct(">I")
_BYTES = b'{"bytes":"'
DONE = b"data: [DONE]\n\n"


class Frames:
    """Turns bytes of an event stream into bytes of Server-Sent Events."""

    def __init__(self) -> None:
        self.pending = b""

    def feed(self, data: bytes) -> bytes:
        """The events of all frames that *data* completes."""
        data = self.pending + data if self.pending else data
        said: list[str] = []
        at = 0
        while len(data) - at >= 16:
            total, headers = _LENGTHS.unpack_from(data, at)
            end = at + total
            if end > len(data):
                break
            (crc,) = _CRC.unpack_from(data, end - 4)
            if crc32(data[at : end - 4]) != crc:
                raise ValueError("a corrupt frame")
            start = at + 12 + headers + len(_BYTES)
            event = json.loads(a2b_base64(data[start : data.index(b'"', start)]))
            if event["type"] == "content_block_delta":
                said.append(f'data: {{"content": {quoted(event["delta"]["text"])}}}\n\n')
            at = end
        self.pending = data[at:]
        return "".join(said).encode()


def upstream_path(body: bytes) -> tuple[bool, str, bytes]:
    """Whether it streams, the path at Bedrock, and the body for it."""
    said = json.loads(body)
    model, stream = said.pop("modelId"), said.pop("stream")
    operation = "invoke-with-response-stream" if stream else "invoke"
    return stream, f"/model/{model.replace(':', '%3A')}/{operation}", json.dumps(said).encode()
