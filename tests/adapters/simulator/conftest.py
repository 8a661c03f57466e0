"""One running simulator for all of these tests, forgotten between them; real boto3 clients."""

import json

import pytest

from bedrock_proxy_adapters.simulator import start_in_thread

CLAUDE = "us.anthropic.claude-sonnet-4-20250514-v1:0"


@pytest.fixture(scope="session")
def running():
    with start_in_thread() as simulator:
        yield simulator


@pytest.fixture(scope="session")
def client(running):
    return running.client()


@pytest.fixture
def simulator(running):
    running.reset()
    running.default(None)
    return running


class Caller:
    """The four ways to call, by boto3, with what boto3 makes of the answers."""

    def __init__(self, client):
        self.client = client
        self.opened = []

    def invoke(self, model=CLAUDE, body=None):
        return self.client.invoke_model(modelId=model, body=json.dumps(body or claude_body()))

    def invoked(self, model=CLAUDE, body=None):
        return json.loads(self.invoke(model, body)["body"].read())

    def stream(self, model=CLAUDE, body=None):
        reply = self.client.invoke_model_with_response_stream(
            modelId=model, body=json.dumps(body or claude_body())
        )
        self.opened.append(reply["body"])
        return reply["body"]

    def streamed(self, model=CLAUDE, body=None):
        return [json.loads(event["chunk"]["bytes"]) for event in self.stream(model, body)]

    def converse(self, model=CLAUDE, prompt="hello there", **more):
        return self.client.converse(modelId=model, messages=messages(prompt), **more)

    def converse_stream(self, model=CLAUDE, prompt="hello there", **more):
        reply = self.client.converse_stream(modelId=model, messages=messages(prompt), **more)
        self.opened.append(reply["stream"])
        return reply["stream"]


def messages(prompt):
    return [{"role": "user", "content": [{"text": prompt}]}]


def claude_body(prompt="hello there", **more):
    return {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 400,
        "messages": [{"role": "user", "content": prompt}],
        **more,
    }


@pytest.fixture
def call(simulator, client):
    caller = Caller(client)
    yield caller
    for stream in caller.opened:
        stream.close()
