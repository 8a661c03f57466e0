// Ask a running proxy as a program would. In: a job as JSON on standard input. Out: JSON lines.

import { text } from "node:stream/consumers";

import {
  BedrockProxyClient,
  BedrockProxyError,
} from "../../../examples/client-javascript/client-integration.js";

const { endpoint, token, request, how, abortAfter } = JSON.parse(await text(process.stdin));
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const client = new BedrockProxyClient({ endpoint, token });
const stopping = new AbortController();

try {
  if (how === "whole") {
    say({ whole: await client.invoke(request) });
  } else {
    let count = 0;
    for await (const piece of await client.stream(request, { format: how, signal: stopping.signal })) {
      say(piece);
      count += 1;
      if (count === abortAfter) stopping.abort();
    }
  }
  say({ end: "whole" });
} catch (error) {
  if (error instanceof BedrockProxyError) {
    const { message, code, status, retryable, retryAfter, requestId, limit } = error;
    say({ end: "error", message, code, status, retryable, retryAfter, requestId, limit });
  } else if (error.name === "AbortError") {
    say({ end: "aborted" });
  } else {
    throw error;
  }
}
