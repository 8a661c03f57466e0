"""``bedrock-proxy serve`` with the store in memory, and customers in it (`serve` itself has none)."""

from bedrock_proxy_adapters.cli.server import listening, run
from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.telemetry.usage_log import usage_writer
from benchmarks.servers import add_customers

if __name__ == "__main__":
    with listening("127.0.0.1", 0) as listener:
        proxy = proxy_from_env(finished=usage_writer())
        add_customers(proxy.store)
        run(proxy, listener)
