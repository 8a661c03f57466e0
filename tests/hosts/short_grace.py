"""`bedrock-proxy serve` with a grace of three seconds instead of thirty, and no patience."""

from bedrock_proxy_adapters.cli import server, serving

server.GRACE = 3.0
serving.ENDING = 2.0  # type: ignore[misc]
serving.CLOSING = 1.0  # type: ignore[misc]

if __name__ == "__main__":
    server.serve()
