"""The proxy as a Lambda function behind API Gateway, a load balancer or a Function URL."""

import json
import sys

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.api_gateway import api_gateway_handler

# Made once for each execution environment, before its first event.
handler = api_gateway_handler(proxy_from_env())

if __name__ == "__main__":
    # To try it without Lambda: an event on standard input, the answer on standard output.
    json.dump(handler(json.load(sys.stdin), None), sys.stdout, indent=2)
