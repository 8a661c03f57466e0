import asyncio
import os
import shutil
import ssl
import subprocess
import threading

import boto3
import pytest
from tests.adapters.upstream.scripted import Face, Server, eventually, pumps

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


@pytest.fixture(params=["blocking", "native"])
def face(request):
    """Both faces of the upstream; afterwards no pump is left running."""
    face = Face(request.param)
    if request.param == "native":
        face.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=face.loop.run_forever, name="test-loop", daemon=True)
        thread.start()
    yield face
    for reply in face.opened:
        reply.close()
    if face.loop is not None:
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
def upstream(server, client_of):
    client = client_of(server.url)
    yield Boto3Upstream(client)
    client.close()


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
