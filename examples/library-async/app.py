"""Ask a model several things at once: python app.py "Say hello." "Count to three." """

import asyncio
import os
import sys

from bedrock_proxy.errors import ProxyError
from bedrock_proxy.parts import Text
from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.library import AsyncAnswer, async_answers

MODEL = os.environ.get("MODEL", "anthropic.claude-3-haiku-20240307-v1:0")


async def ask(answer: AsyncAnswer, prompt: str) -> str:
    request = {
        "modelId": MODEL,
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 300,
        "messages": [{"role": "user", "content": prompt}],
    }
    parts = answer(os.environ["TOKEN"], request)
    return "".join([part.text async for part in parts if isinstance(part, Text)])


async def main(prompts: list[str]) -> int:
    if not os.environ.get("TOKEN"):
        print("Set TOKEN to a token; `bedrock-proxy customers create` makes one.", file=sys.stderr)
        return 2
    proxy = proxy_from_env()
    answer = async_answers(proxy)
    try:
        texts = await asyncio.gather(*(ask(answer, prompt) for prompt in prompts))
    except ProxyError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1
    finally:
        await asyncio.to_thread(proxy.shutdown)
        proxy.close()
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"{prompt}\n  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:] or ["Say hello.", "Count to three."])))
