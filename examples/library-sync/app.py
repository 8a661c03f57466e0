"""Ask a model and print its answer as it comes: python app.py "Say hello." """

import os
import sys

from bedrock_proxy.errors import ProxyError
from bedrock_proxy.parts import Text, UsageReport
from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.library import answers

MODEL = os.environ.get("MODEL", "anthropic.claude-3-haiku-20240307-v1:0")


def main(prompt: str) -> int:
    if not os.environ.get("TOKEN"):
        print("Set TOKEN to a token; `bedrock-proxy customers create` makes one.", file=sys.stderr)
        return 2
    proxy = proxy_from_env()
    answer = answers(proxy)
    request = {
        "modelId": MODEL,
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 300,
        "messages": [{"role": "user", "content": prompt}],
    }
    try:
        for part in answer(os.environ["TOKEN"], request):
            if isinstance(part, Text):
                print(part.text, end="", flush=True)
            elif isinstance(part, UsageReport):
                print(f"\n({part.usage.input_tokens} + {part.usage.output_tokens} tokens)")
    except ProxyError as error:
        print(f"\n{error.code}: {error.message}", file=sys.stderr)
        return 1
    finally:
        proxy.shutdown()
        proxy.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:]) or "Say hello."))
