"""
The malformed requests of RELIABILITY.md section 4, once: driven through the flow in
process, and written to real sockets.
"""

import json

from attrs import evolve, field, frozen
from tests.flows import MODEL, TOKEN, ask_claude

from bedrock_proxy import tokens
from bedrock_proxy.customers import CustomerStatus, Key, TokenOwner
from bedrock_proxy.front import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URI
from bedrock_proxy.http import Headers, Request
from bedrock_proxy.rules import Rules
from bedrock_proxy.strict_json import MAX_DEPTH

REGION = "us-east-1"
ACCOUNT = "123456789012"
RULES = Rules(region=REGION, account=ACCOUNT)
"""What the rows about ARNs are checked against."""

DISABLED = tokens.mint(b"\x01" * 32)
"""A disabled customer's token."""
LIMITED = tokens.mint(b"\x02" * 32)
"""A token whose customer may call :data:`ALLOWED` alone."""
UNKNOWN = tokens.mint(b"\x03" * 32)
"""A token of the right shape that nobody has."""
EXPIRED = tokens.mint(b"\x04" * 32)
REVOKED = tokens.mint(b"\x05" * 32)
BROUGHT = "legacy-token.of/another+shape~0123="
"""A token that the operator brought; nobody has it either."""

ALLOWED = "amazon.nova-micro-v1:0"


def owner(
    customer: str,
    token: str,
    status: CustomerStatus = CustomerStatus.ACTIVE,
    models: frozenset[str] | None = None,
) -> TokenOwner:
    key = Key(key_id=f"key-{customer}", digest=tokens.digest(token, None), created_at=0)
    return TokenOwner(customer_id=customer, key=key, status=status, models=models)


OWNERS = (
    owner("active", TOKEN),
    owner("disabled", DISABLED, CustomerStatus.DISABLED),
    owner("limited", LIMITED, models=frozenset({ALLOWED})),
)

VALID = ask_claude()


@frozen
class Row:
    """
    One malformed request and its answer.

    Attributes:
        id: The promise's id, then what is special.
        status, code: The answer.
        headers: Beside Host, the credential and Content-Length.
        token: Sent as a bearer token; None for no Authorization header.
        framed: Whether Content-Length is added.
        chunked: Whether the body is written chunked on a socket.
        looks_up: Whether the token is looked up: one store call, else none.
        says: A phrase of the error's message.
        answers: Headers of the reply.
    """

    id: str
    status: int
    code: str = "invalid_request"
    method: str = "POST"
    path: str = "/bedrock"
    query: str = ""
    headers: Headers = ()
    body: bytes = field(default=VALID, repr=False)
    token: str | None = TOKEN
    hosts: tuple[str, ...] = ("proxy.test",)
    framed: bool = True
    chunked: bool = False
    looks_up: bool = False
    says: str = ""
    answers: Headers = ()

    @property
    def is_native(self) -> bool:
        """Whether it is written on Bedrock's own wire, and so refused on it."""
        return self.path.startswith("/model/")

    @property
    def promise(self) -> str:
        return self.id.partition(" ")[0]

    @property
    def all_headers(self) -> Headers:
        """In the order they are sent."""
        own = [("host", host) for host in self.hosts]
        if self.token is not None:
            own.append(("authorization", f"Bearer {self.token}"))
        own += self.headers
        if self.framed:
            own.append(("content-length", str(len(self.body))))
        return tuple(own)

    @property
    def request(self) -> Request:
        """As a host would hand it over."""
        return Request("r-1", self.method, self.path, self.all_headers, self.query)

    @property
    def wire(self) -> bytes:
        """As a client would write it."""
        target = self.path + (f"?{self.query}" if self.query else "")
        lines = [f"{self.method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.all_headers]
        body = self.body
        if self.chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def _with_body(name: str, body: bytes, says: str = "") -> Row:
    return Row(name, 400, body=body, looks_up=True, says=says)


def _with_token(name: str, authorization: str | None, **more: str) -> Row:
    headers: Headers = tuple((k.replace("_", "-"), v) for k, v in more.items())
    if authorization is not None:
        headers = (("authorization", authorization), *headers)
    return Row(
        name,
        401,
        "unauthorized",
        headers=headers,
        token=None,
        answers=(("www-authenticate", "Bearer"),),
    )


def _naming(name: str, model: object, status: int = 400, token: str = TOKEN) -> Row:
    return Row(
        name,
        status,
        "invalid_request" if status == 400 else "model_not_allowed",
        body=json.dumps({"modelId": model, "messages": []}).encode(),
        token=token,
        looks_up=True,
    )


def _arn(service: str = "bedrock", **parts: str) -> str:
    partition = parts.get("partition", "aws")
    region = parts.get("region", REGION)
    account = parts.get("account", ACCOUNT)
    kind = parts.get("kind", "application-inference-profile")
    return f"arn:{partition}:{service}:{region}:{account}:{kind}/abc123def456"


_CLOSES = (("connection", "close"),)

FRAMING = (
    Row(
        "M01 length and transfer encoding",
        400,
        headers=(("transfer-encoding", "chunked"),),
        chunked=True,
        answers=_CLOSES,
    ),
    Row("M02 two lengths", 400, headers=(("content-length", "1"),), answers=_CLOSES),
    *(
        Row(
            f"M04 length {length[:6]}",
            400,
            headers=(("content-length", length),),
            framed=False,
            answers=_CLOSES,
        )
        for length in ("-1", "+5", "0x5", "9" * 30, "5 5", "1_0")
    ),
    Row("M14 no host", 400, hosts=(), answers=_CLOSES),
    Row("M14 two hosts", 400, hosts=("proxy.test", "other.test"), answers=_CLOSES),
    Row("M14 the same host twice", 400, hosts=("proxy.test", "proxy.test"), answers=_CLOSES),
    Row(
        "M18 one large header",
        431,
        "too_large",
        headers=(("x-filler", "a" * MAX_HEADER_BYTES),),
        answers=_CLOSES,
    ),
    Row(
        "M18 many large headers",
        431,
        "too_large",
        headers=tuple((f"x-filler-{i}", "a" * 2_000) for i in range(17)),
        answers=_CLOSES,
    ),
    Row(
        "M18 65 headers",
        431,
        "too_large",
        headers=tuple((f"x-{i}", "a") for i in range(MAX_HEADERS - 2)),
        answers=_CLOSES,
    ),
    Row("M19 long path", 414, "too_large", path="/" + "a" * MAX_URI, answers=_CLOSES),
    Row("M19 long query", 414, "too_large", query="q=" + "a" * MAX_URI, answers=_CLOSES),
    Row(
        "M26 declared over 20 MiB",
        413,
        "too_large",
        headers=(("content-length", str(20 * 1024 * 1024 + 1)),),
        framed=False,
        body=b"",
        answers=_CLOSES,
    ),
)

MEDIA = (
    *(
        Row(f"M28 {coding}", 415, "unsupported_media_type", headers=(("content-encoding", coding),))
        for coding in ("gzip", "deflate", "br", "identity, gzip")
    ),
    *(
        Row(
            f"M29 {kind}",
            415,
            "unsupported_media_type",
            headers=(("content-type", kind),),
            says="application/json",
        )
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/octet-stream",
            "application/jsonp",
            "application",
            "text/json+json",
        )
    ),
    *(
        Row(
            f"M30 {charset}",
            415,
            "unsupported_media_type",
            headers=(("content-type", f"application/json; charset={charset}"),),
        )
        for charset in ("iso-8859-1", "UTF-16", '"latin1"')
    ),
)

ROUTING = (
    *(
        Row(f"M31 {path}", 404, "not_found", path=path)
        for path in ("/nothing", "/bedrock/", "/v2/messages", "/BEDROCK", "/model", "/admin")
    ),
    *(
        Row(f"M32 {method}", 405, "method_not_allowed", method=method, answers=(("allow", "POST"),))
        for method in ("GET", "PUT", "DELETE", "PATCH", "BREW")
    ),
    Row(
        "M32 POST on a read-only path",
        405,
        "method_not_allowed",
        path="/healthz",
        answers=(("allow", "GET, HEAD"),),
    ),
    *(
        Row(f"M33 {path}", 404, "not_found", path=path)
        for path in (
            "//v1/messages",
            "//bedrock",
            "/x/../bedrock",
            "/%2e%2e/bedrock",
            "/x/%2e%2e/bedrock",
            "/bedrock;x",
            "/bedrock;x=1",
            "/bedrock%00",
            "/bedrock%0a",
            "/./bedrock",
        )
    ),
    Row("M83 preflight", 403, "origin_not_allowed", method="OPTIONS", token=None, body=b"",
        headers=(("origin", "https://a.test"), ("access-control-request-method", "POST"))),
    Row("M83 preflight of nothing", 403, "origin_not_allowed", method="OPTIONS", token=None,
        body=b"", path="/nothing", headers=(("origin", "https://a.test"),)),
)  # fmt: skip

CREDENTIALS = (
    _with_token("M36 none", None),
    _with_token("M37 bearer with nothing", "Bearer"),
    _with_token("M37 two tokens", f"Bearer {TOKEN} {TOKEN}"),
    _with_token("M37 two tokens with a comma", f"Bearer {TOKEN}, {TOKEN}"),
    _with_token("M37 basic", "Basic dXNlcjpwYXNzd29yZA=="),
    _with_token("M37 the bare token", TOKEN),
    _with_token("M37 signed for another service", "AWS4-HMAC-SHA256 Credential=AKIA/x, Signature=0"),
    _with_token("M37 empty key", None, x_api_key=""),
    _with_token("M38 too short", "Bearer abcdefghijklmno"),
    _with_token("M38 too long", "Bearer " + "a" * 513),
    _with_token("M38 outside the alphabet", "Bearer abcdefghijklmnop!"),
    _with_token("M38 not ascii", "Bearer abcdefghijklmnop\xe9"),
    _with_token("M38 no-break space", f"Bearer \xa0{TOKEN}"),
    _with_token("M38 ours, wrong checksum", f"Bearer {TOKEN[:-1]}{'0' if TOKEN[-1] != '0' else '1'}"),
    _with_token("M38 ours, one letter short", f"Bearer {TOKEN[:-1]}"),
    _with_token("M38 ours, a letter changed", f"Bearer {TOKEN[:9]}{'a' if TOKEN[9] != 'a' else 'b'}{TOKEN[10:]}"),
    _with_token("M38 ours, in x-api-key", None, x_api_key=TOKEN[:-1]),
    _with_token("M39 sql", "Bearer ' OR '1'='1' -- aaaaaaaa"),
    _with_token("M39 sql in x-api-key", None, x_api_key="x'; DROP TABLE keys; --"),
    _with_token("M39 nosql", 'Bearer {"$gt": ""}aaaaaaaaaaaa'),
    _with_token("M39 key expression", "Bearer attribute_exists(pk)aaaa"),
    Row("M40 two authorizations", 400, headers=(("authorization", "Bearer " + UNKNOWN),)),
    Row("M40 the same twice", 400, headers=(("authorization", f"Bearer {TOKEN}"),)),
    Row("M41 differing credentials", 400, headers=(("x-api-key", UNKNOWN),)),
    Row("M41 differing keys", 400, token=None,
        headers=(("x-api-key", TOKEN), ("x-api-key", UNKNOWN))),
    Row("M42 token in the query", 401, "unauthorized", query=f"token={TOKEN}&api_key={TOKEN}",
        token=None, answers=(("www-authenticate", "Bearer"),)),
    Row("M43 unknown", 401, "unauthorized", token=UNKNOWN, looks_up=True,
        answers=(("www-authenticate", "Bearer"),)),
    Row("M43 unknown, of another shape", 401, "unauthorized", token=BROUGHT, looks_up=True),
    Row("M43 expired", 401, "unauthorized", token=EXPIRED, looks_up=True),
    Row("M43 revoked", 401, "unauthorized", token=REVOKED, looks_up=True),
    Row("M44 disabled", 403, "customer_disabled", token=DISABLED, looks_up=True),
)  # fmt: skip

_DEEP = b'{"modelId": "m", "a":'

BODIES = (
    _with_body("M46 empty", b""),
    _with_body("M46 blank", b" \r\n\t "),
    _with_body("M47 invalid utf-8", VALID[:-1] + b', "x": "\xff"}'),
    _with_body("M47 overlong", VALID[:-1] + b', "x": "\xc0\xaf"}'),
    _with_body("M48 utf-16", VALID.decode().encode("utf-16")),
    _with_body("M48 utf-16 without mark", VALID.decode().encode("utf-16-le")),
    _with_body("M48 utf-32", VALID.decode().encode("utf-32")),
    _with_body("M49 byte order mark", b"\xef\xbb\xbf" + VALID),
    _with_body("M50 truncated", VALID[:-1]),
    _with_body("M50 trailing garbage", VALID + b"x"),
    _with_body("M50 two objects", VALID + VALID),
    _with_body("M50 not json", b"modelId=m&stream=true"),
    _with_body("M51 array", b"[" + VALID + b"]"),
    _with_body("M51 string", b'"modelId"'),
    _with_body("M51 null", b"null"),
    _with_body("M51 number", b"5"),
    _with_body("M52 duplicate key", VALID[:-1] + b', "stream": false}'),
    _with_body("M52 deep duplicate", VALID[:-1] + b', "x": [{"y": {"a": 1, "a": 1}}]}'),
    _with_body("M52 duplicate by escape", VALID[:-1] + b', "\\u0073tream": false}'),
    _with_body("M53 NaN", VALID[:-1] + b', "x": NaN}'),
    _with_body("M53 Infinity", VALID[:-1] + b', "x": -Infinity}'),
    _with_body("M53 1e999", VALID[:-1] + b', "x": 1e999}'),
    _with_body("M54 65 levels", _DEEP + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"),
    _with_body("M54 100000 levels", _DEEP + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    _with_body("M54 100000 objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    _with_body("M54 100000 open", _DEEP + b"[" * 100_000),
    _with_body("M55 101 digits", VALID[:-1] + b', "x": ' + b"9" * 101 + b"}"),
    _with_body("M55 long integer", VALID[:-1] + b', "x": ' + b"9" * 4_301 + b"}"),
    _with_body("M56 lone surrogate", VALID[:-1] + b', "x": "\\ud800"}'),
    _with_body("M56 lone surrogate in a key", VALID[:-1] + b', "\\udc00": 1}'),
    *(
        _with_body(f"M64 stream {value}", b'{"modelId": "m.m", "stream": %b}' % value.encode(),
                   '"stream"')
        for value in ('"true"', "1", "0", "null", "[]", "{}")
    ),
    *(
        _with_body(f"M64 stream_events {value}",
                   b'{"modelId": "m.m", "stream_events": %b}' % value.encode(), '"stream_events"')
        for value in ('"all"', "1", "true", "null", "[]", "{}")
    ),
)  # fmt: skip

MODELS = (
    _with_body("M72 missing", b'{"messages": []}'),
    _with_body("M72 in neither member", b'{"model_id": "anthropic.claude-v2"}'),
    _with_body("M72 empty, model beside it", b'{"modelId": "", "model": "anthropic.claude-v2"}'),
    *(_naming(f"M72 {json.dumps(model)}", model) for model in ("", None, 5, True, [MODEL], {})),
    _naming("M72 too long", "a" * 2_049),
    *(
        _naming(f"M73 {json.dumps(model)}", model)
        for model in (
            ".",
            "..",
            "../bedrock",
            "a/../b",
            "anthropic.claude\r\nx-injected: 1",
            "anthropic.claude?x=1",
            "anthropic.claude#x",
            "anthropic claude",
            " anthropic.claude-v2",
            "anthropic.claude-v2\n",
            "anthropic.cl\u00e4ude",
            "anthropic.claude\u2024v2",
            "anthropic%2eclaude-v2",
            "anthropic%3Aclaude",
            "http://169.254.169.254/latest/meta-data",
            "https://bedrock-runtime.us-east-1.amazonaws.com/model/x",
            "\\\\host\\share",
            "anthropic.claude\x00v2",
        )
    ),
    *(
        _naming(f"M74 {name}", arn, 403)
        for name, arn in (
            ("another region", _arn(region="eu-west-1")),
            ("no region", _arn(region="")),
            ("another partition", _arn(partition="aws-cn")),
            ("another account", _arn(account="999999999999")),
            ("another service", _arn(service="s3", kind="bucket")),
            ("lambda", _arn(service="lambda", kind="function")),
            ("sagemaker, no endpoint", _arn(service="sagemaker", kind="model")),
        )
    ),
    *(
        _naming(f"{name}", model, 403, LIMITED)
        for name, model in (
            ("M75 not on the list", MODEL),
            ("M75 unknown", "nobody.knows-this-v1:0"),
            ("M75 application profile", _arn()),
            ("M75 the name with a suffix", ALLOWED + "x"),
            ("M75 another case", ALLOWED.upper()),
            ("M75 an unknown geography", f"xx.{ALLOWED}"),
            ("M76 profile", f"us.{MODEL}"),
            ("M76 global profile", f"global.{MODEL}"),
            (
                "M76 profile by ARN",
                f"arn:aws:bedrock:{REGION}:{ACCOUNT}:inference-profile/us.{MODEL}",
            ),
        )
    ),
)


def _in_path(name: str, model: str, status: int = 400, token: str = TOKEN) -> Row:
    code = {400: "invalid_request", 403: "model_not_allowed", 404: "not_found"}[status]
    path = f"/model/{model}/converse"
    return Row(name, status, code, path=path, token=token, looks_up=status != 404)


NATIVE = (
    *(
        _in_path(f"M35 {model}", model)
        for model in (
            "a.b%2Fc.d",
            "a.b%3A",
            "anthropic%253Aclaude",
            "a.b/c.d",
            "arn%3Aaws%3Abedrock",
        )
    ),
    *(
        _in_path(f"M73 in the path {model[:20]}", model)
        for model in (
            ".",
            "..",
            "%2e%2e",
            "..%2f..%2fadmin",
            "a.b%0d%0ax-injected:%201",
            "a.b%3Fx=1",
            "a.b%23x",
            "a%20b",
            "%C3%A4",
            "a.b%00",
            "http:%2F%2F169.254.169.254%2Flatest",
            "a" * 2_049,
        )
    ),
    # No route is found for what is no text: the token is not even looked at.
    evolve(_in_path("M35 %ff", "%ff"), looks_up=False),
    _in_path("M33 no model in the path", "", 404),
    _in_path("M74 in the path", _arn(region="eu-west-1"), 403),
    _in_path("M74 in the path, encoded", _arn(account="999999999999").replace("/", "%2F"), 403),
    _in_path("M75 in the path", MODEL, 403, LIMITED),
    _in_path("M76 in the path", f"us.{MODEL}", 403, LIMITED),
)
"""Bedrock's own wire names the model in the path."""

ROWS: tuple[Row, ...] = (*FRAMING, *MEDIA, *ROUTING, *CREDENTIALS, *BODIES, *MODELS, *NATIVE)
"""Every row that is refused before Bedrock is called."""
