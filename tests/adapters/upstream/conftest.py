import asyncio
import os
import shutil
import ssl
import subprocess
import threading

import boto3
import botocore.session
import pytest
from tests.adapters.upstream.scripted import Face, Server, eventually, pumps

from bedrock_proxy_adapters.upstream.aio import AsyncUpstream
from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream, bedrock_client


@pytest.fixture(autouse=True)
def _aws_of_nobody(monkeypatch, tmp_path):
    """No credentials, region or proxy of the machine's own reach a test."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def session():
    return boto3.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="example")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=["blocking", "native", "loops"])
def face(request):
    """Every way there is; afterwards no pump is left running."""
    yield from opened_face(request.param)


@pytest.fixture(params=["blocking", "native"])
def pumped(request):
    """The faces of the boto3 upstream, for what is its own."""
    yield from opened_face(request.param)


def opened_face(kind):
    face = Face(kind)
    if kind != "blocking":
        face.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=face.loop.run_forever, name="test-loop", daemon=True)
        thread.start()
    yield face
    for reply in face.opened:
        reply.close()
    if face.loop is not None:
        # What was closed a moment ago takes a turn or two of the loop.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), face.loop).result()
        face.loop.call_soon_threadsafe(face.loop.stop)
        thread.join()
        face.loop.close()
    assert eventually(lambda: not pumps()), "a pump thread outlived its call"


@pytest.fixture
def client_of(session):
    """Makes clients of ours for a server."""

    def make(url, **kwargs):
        return bedrock_client("us-east-1", url, session=session, **kwargs)

    return make


@pytest.fixture
def upstream_of(request, client_of):
    """Makes upstreams of ours for a server, of the way that the test's face opens calls on."""
    made = []
    face = "face" if "face" in request.fixturenames else "pumped"
    kind = request.getfixturevalue(face).kind

    def make(url, **kwargs):
        if kind == "loops":
            upstream = loops_upstream(url)
        else:
            client = client_of(url, **kwargs)
            made.append(client)
            return Boto3Upstream(client)
        made.append(upstream)
        return upstream

    yield make
    for each in made:
        each.close()


def loops_upstream(url, *keys):
    session = botocore.session.Session()
    session.set_credentials(*(keys or ("AKIDEXAMPLE", "example")))
    return AsyncUpstream(url, "us-east-1", session)


@pytest.fixture
def upstream(server, upstream_of):
    return upstream_of(server.url)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate of its own for 127.0.0.1, made by openssl."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("openssl is needed to make a certificate")
        pytest.skip("openssl is needed to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def tls_server(certificate, monkeypatch):
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(cert))
    server = Server(lambda sock: context.wrap_socket(sock, server_side=True))
    yield server
    server.close()
