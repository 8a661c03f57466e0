"""`bedrock-proxy serve` with a grace of three seconds instead of thirty."""

from bedrock_proxy_adapters.cli import server

server.GRACE = 3.0

if __name__ == "__main__":
    server.serve()
