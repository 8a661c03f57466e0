// The JavaScript client against scripted servers. Run by test_javascript.py, or by itself:
// node --test tests/e2e/javascript/

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import {
  ArrayParser,
  BedrockProxyClient,
  BedrockProxyError,
  EventParser,
  requestFor,
  withRetry,
} from "../../../examples/client-javascript/client-integration.js";

const REQUEST = requestFor("anthropic.claude-3-haiku-20240307-v1:0", "Say hello.");

const SAID = ["Grüße, ", "日本 😀", "one \" quote }{ and back\\slash\\", "]}{[,", "two\nlines", "end"];

const EVENTS = Buffer.from(
  [
    ": a comment\n\n",
    `data: ${JSON.stringify({ content: SAID[0] })}\n\n`,
    `data:${JSON.stringify({ content: SAID[1] })}\r\n\r\n`,
    `: ping\r\rid: 7\rdata: ${JSON.stringify({ content: SAID[2] })}\r\r`,
    `retry: 10\r\nevent: message\r\ndata: {"content":\r\ndata: ${JSON.stringify(SAID[3])}}\r\n\r\n`,
    "event: nothing\n\n",
    `data: ${JSON.stringify({ content: SAID[4] })}\n\n`,
    `data: ${JSON.stringify({ content: SAID[5] })}\n\n`,
    "data: [DONE]\n\n",
  ].join(""),
);

const ARRAY = Buffer.from(
  `  [ ${SAID.map((content) => JSON.stringify({ content, deep: [{ a: "}]" }, []] })).join(" ,\n ")}` +
    ' , {"done": true}]\n',
);

const FORMATS = { sse: [EVENTS, "text/event-stream"], array: [ARRAY, "application/json"] };

/** A client whose server answers with exactly these chunks. */
function told(chunks, contentType, { status = 200, headers = {} } = {}) {
  const body = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  const fetch = async () =>
    new Response(body, { status, headers: { "content-type": contentType, ...headers } });
  return new BedrockProxyClient({ endpoint: "http://scripted.invalid/", token: "t", fetch });
}

async function contents(client, options) {
  const got = [];
  for await (const piece of await client.stream(REQUEST, options)) got.push(piece.content);
  return got;
}

/** What came, and the error it ended in. */
async function broken(client, options) {
  const got = [];
  try {
    for await (const piece of await client.stream(REQUEST, options)) got.push(piece.content);
  } catch (error) {
    return { got, error };
  }
  return { got, error: null };
}

/** A real server on loopback. */
const servers = [];
async function serve(answer) {
  const server = createServer((request, response) => {
    response.socket.setNoDelay(true);
    answer(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  servers.push(server);
  const { port } = server.address();
  return new BedrockProxyClient({ endpoint: `http://127.0.0.1:${port}/bedrock`, token: "t" });
}
after(() => {
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
});

const refusal = (response, status, body, headers = {}) => {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(typeof body === "string" ? body : JSON.stringify(body));
};

for (const [format, [bytes, contentType]] of Object.entries(FORMATS)) {
  test(`${format}: the pieces are the same wherever the bytes are cut in two`, async () => {
    for (let cut = 0; cut <= bytes.length; cut += 1) {
      const chunks = [bytes.subarray(0, cut), bytes.subarray(cut)].filter((part) => part.length);
      assert.deepEqual(await contents(told(chunks, contentType), { format }), SAID, `cut at ${cut}`);
    }
  });

  test(`${format}: the pieces are the same when every byte comes alone`, async () => {
    const chunks = Array.from(bytes, (byte) => Uint8Array.of(byte));
    assert.deepEqual(await contents(told(chunks, contentType), { format }), SAID);
  });

  test(`${format}: the pieces are the same from a server that sends byte by byte`, async () => {
    const client = await serve(async (request, response) => {
      response.writeHead(200, { "content-type": contentType });
      for (const byte of bytes) {
        response.write(Uint8Array.of(byte));
        await new Promise(setImmediate);
      }
      response.end();
    });
    assert.deepEqual(await contents(client, { format }), SAID);
  });

  test(`${format}: a piece is given before the next one is sent`, async () => {
    const [head, tail] = format === "sse" ? ["", "\n\n"] : ["[", ","];
    const mark = format === "sse" ? "data: " : "";
    let more;
    const waiting = new Promise((resolve) => (more = resolve));
    const client = await serve(async (request, response) => {
      response.writeHead(200, { "content-type": contentType });
      response.write(`${head}${mark}{"content":"first"}${tail}`);
      await waiting;
      response.write(`${mark}{"content":"second"}${tail}`);
      response.end(format === "sse" ? "data: [DONE]\n\n" : '{"done":true}]');
    });
    const got = [];
    for await (const { content } of await client.stream(REQUEST, { format })) {
      got.push(content);
      more();
    }
    assert.deepEqual(got, ["first", "second"]);
  });

  test(`${format}: a stream that is cut off anywhere is an error, never a short answer`, async () => {
    const whole = bytes.lastIndexOf(format === "sse" ? "\n\n" : "}") + 1;
    for (let end = 0; end < whole; end += 1) {
      const { got, error } = await broken(told([bytes.subarray(0, end)], contentType), { format });
      assert.ok(error instanceof BedrockProxyError, `cut off at ${end}`);
      assert.equal(error.code, "truncated");
      assert.equal(error.retryable, true);
      assert.deepEqual(got, SAID.slice(0, got.length));
    }
  });

  test(`${format}: bytes that are no UTF-8 are an error`, async () => {
    const wrong = Buffer.from(bytes);
    wrong[bytes.indexOf("ü")] = 0xff;
    const { error } = await broken(told([wrong], contentType), { format });
    assert.equal(error.code, "invalid_answer");
  });

  test(`${format}: an error in the stream is thrown with its facts, after what came before`, async () => {
    const fact = {
      error: "Bedrock cut the answer short.",
      code: "upstream_torn",
      request_id: "r-1",
      retryable: true,
      retry_after: 3,
      limit: "x",
    };
    const said =
      format === "sse"
        ? `data: {"content":"so far"}\n\nevent: error\ndata: ${JSON.stringify(fact)}\n\n`
        : `[{"content":"so far"},\n${JSON.stringify(fact)}]\n`;
    const { got, error } = await broken(told([Buffer.from(said)], contentType), { format });
    assert.deepEqual(got, ["so far"]);
    assert.ok(error instanceof BedrockProxyError);
    assert.deepEqual(
      [error.message, error.code, error.requestId, error.retryable, error.retryAfter, error.limit],
      ["Bedrock cut the answer short.", "upstream_torn", "r-1", true, 3, "x"],
    );
    assert.equal(error.status, null);
  });

  test(`${format}: aborting in the middle ends the request on the server too`, async () => {
    let gone;
    const left = new Promise((resolve) => (gone = resolve));
    const client = await serve((request, response) => {
      response.on("close", gone);
      response.writeHead(200, { "content-type": contentType });
      response.write(format === "sse" ? 'data: {"content":"first"}\n\n' : '[{"content":"first"},');
    });
    const stopping = new AbortController();
    const got = [];
    await assert.rejects(
      async () => {
        const answer = await client.stream(REQUEST, { format, signal: stopping.signal });
        for await (const { content } of answer) {
          got.push(content);
          stopping.abort();
        }
      },
      { name: "AbortError" },
    );
    await left;
    assert.deepEqual(got, ["first"]);
  });
}

test("an event named error is an error, whatever its data holds", async () => {
  const said = Buffer.from("event: error\ndata: {}\n\ndata: [DONE]\n\n");
  const { error } = await broken(told([said], "text/event-stream"));
  assert.ok(error instanceof BedrockProxyError);
  assert.equal(error.code, "unknown");
});

test("comments alone are no pieces", async () => {
  const said = Buffer.from(": ping\n\n: ping\n\ndata: [DONE]\n\n");
  assert.deepEqual(await contents(told([said], "text/event-stream")), []);
});

test("a byte order mark before the first event is no part of it", () => {
  assert.deepEqual(new EventParser().feed("\uFEFFdata: x\n\n"), [{ name: "message", data: "x" }]);
});

test("the answer's own type decides how it is read, not what was asked for", async () => {
  assert.deepEqual(await contents(told([ARRAY], "application/json; charset=utf-8")), SAID);
});

test("what is no array of objects is refused", () => {
  for (const text of ["x", "{}", "[1]", "[{}] {}", '["a"]', "[{}x", "[{a}]"]) {
    assert.throws(() => new ArrayParser().feed(text), SyntaxError, text);
  }
});

test("a broken answer is an error of this client", async () => {
  const { error } = await broken(told([Buffer.from("<html>")], "text/html"));
  assert.equal(error.code, "invalid_answer");
});

test("leaving the loop ends the request", async () => {
  let gone;
  const left = new Promise((resolve) => (gone = resolve));
  const client = await serve((request, response) => {
    response.on("close", gone);
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write('data: {"content":"first"}\n\n');
  });
  for await (const { content } of await client.stream(REQUEST)) {
    assert.equal(content, "first");
    break;
  }
  await left;
});

test("aborting before the head rejects with the signal's reason", async () => {
  const stopping = new AbortController();
  const client = await serve(() => stopping.abort(new Error("enough")));
  await assert.rejects(client.stream(REQUEST, { signal: stopping.signal }), { message: "enough" });
});

test("a connection that is reset in the middle is a network error", async () => {
  const client = await serve((request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write('data: {"content":"first"}\n\n', () => response.socket.resetAndDestroy());
  });
  const { got, error } = await broken(client);
  assert.ok(got.length <= 1);
  assert.deepEqual([error.code, error.retryable], ["network", true]);
});

test("a server that is not there is a network error", async () => {
  const client = await serve(() => {});
  const server = servers.pop();
  server.close();
  await once(server, "close");
  await assert.rejects(client.invoke(REQUEST), { name: "BedrockProxyError", code: "network" });
});

test("the request carries the token, the format and the model's body", async () => {
  let seen;
  const client = await serve(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    seen = { headers: request.headers, body: JSON.parse(Buffer.concat(chunks)), url: request.url };
    refusal(response, 200, { content: [{ text: "hello" }] });
  });
  assert.deepEqual(await client.invoke(REQUEST), { content: [{ text: "hello" }] });
  assert.equal(seen.url, "/bedrock");
  assert.equal(seen.headers.authorization, "Bearer t");
  assert.equal(seen.headers["content-type"], "application/json");
  assert.equal(seen.headers.accept, "application/json");
  assert.deepEqual(seen.body, { ...REQUEST, stream: false });
});

test("a refusal rejects with every fact the proxy tells", async () => {
  const client = await serve((request, response) => {
    const body = {
      error: "The limit of 2 requests per minute has been reached; try again in 7 seconds.",
      code: "rate_limited",
      request_id: "r-2",
      retryable: true,
      limit: "requests_per_minute",
      retry_after: 7,
    };
    refusal(response, 429, body, { "retry-after": "9" });
  });
  await assert.rejects(client.stream(REQUEST), (error) => {
    assert.ok(error instanceof BedrockProxyError);
    assert.match(error.message, /^The limit of 2 requests/);
    assert.deepEqual(
      [error.code, error.status, error.retryable, error.retryAfter, error.requestId, error.limit],
      ["rate_limited", 429, true, 7, "r-2", "requests_per_minute"],
    );
    return true;
  });
});

test("an answer from something else on the way is an error with its status", async () => {
  const soon = new Date(Date.now() + 120_000).toUTCString();
  for (const [status, header, retryable, least, most] of [
    [503, "11", true, 11, 11],
    [503, soon, true, 100, 121],
    [502, "soon", true, null, null],
    [404, undefined, false, null, null],
  ]) {
    const client = await serve((request, response) => {
      refusal(response, status, "<h1>Oh</h1>", header ? { "retry-after": header } : {});
    });
    await assert.rejects(client.invoke(REQUEST), (error) => {
      assert.deepEqual([error.code, error.status, error.retryable], ["http_error", status, retryable]);
      if (least === null) assert.equal(error.retryAfter, null);
      else assert.ok(error.retryAfter >= least && error.retryAfter <= most);
      return true;
    });
  }
});

test("a whole answer that is no JSON is an error of this client", async () => {
  const client = await serve((request, response) => refusal(response, 200, "{"));
  await assert.rejects(client.invoke(REQUEST), { code: "invalid_answer" });
});

const busy = (retryAfter) =>
  new BedrockProxyError("Busy.", { code: "rate_limited", retryable: true, retryAfter });

test("a retry waits as long as the proxy asks for", async () => {
  let calls = 0;
  const client = await serve((request, response) => {
    calls += 1;
    if (calls === 1) {
      refusal(response, 429, { error: "Busy.", code: "rate_limited", retryable: true, retry_after: 1 });
    } else refusal(response, 200, { ok: true });
  });
  const waited = [];
  const begun = performance.now();
  const answer = await withRetry(() => client.invoke(REQUEST), {
    onWait: (seconds, error) => waited.push([seconds, error.code]),
  });
  assert.deepEqual(answer, { ok: true });
  assert.deepEqual([calls, waited], [2, [[1, "rate_limited"]]]);
  assert.ok(performance.now() - begun >= 995);
});

test("a retry ends after its attempts with the last error", async () => {
  let calls = 0;
  const call = async () => {
    calls += 1;
    throw busy(0.001 * calls);
  };
  await assert.rejects(withRetry(call, { attempts: 4 }), { retryAfter: 0.004 });
  assert.equal(calls, 4);
});

test("what cannot be helped by a retry is thrown at once", async () => {
  for (const error of [
    new BedrockProxyError("No.", { code: "unauthorized", retryable: false }),
    busy(61),
    new TypeError("a defect"),
  ]) {
    let calls = 0;
    const call = async () => {
      calls += 1;
      throw error;
    };
    await assert.rejects(withRetry(call), (thrown) => thrown === error);
    assert.equal(calls, 1);
  }
});

test("without a word from the proxy a retry waits a random while that doubles", async () => {
  const waited = [];
  const call = async () => {
    throw busy(null);
  };
  const options = { attempts: 3, onWait: (seconds) => waited.push(seconds) };
  await assert.rejects(withRetry(call, options), BedrockProxyError);
  assert.equal(waited.length, 2);
  assert.ok(waited[0] >= 0 && waited[0] <= 1 && waited[1] >= 0 && waited[1] <= 2);
});

test("aborting ends the waiting for a retry", async () => {
  const stopping = new AbortController();
  const call = async () => {
    throw busy(50);
  };
  const waiting = withRetry(call, { signal: stopping.signal });
  await pause(5);
  stopping.abort();
  await assert.rejects(waiting, { name: "AbortError" });
});

test("each family gets the body it understands", () => {
  assert.deepEqual(requestFor("us.anthropic.claude-x", "p", 5), {
    modelId: "us.anthropic.claude-x",
    anthropic_version: "bedrock-2023-05-31",
    max_tokens: 5,
    messages: [{ role: "user", content: "p" }],
  });
  assert.deepEqual(requestFor("amazon.nova-lite-v1:0", "p", 5).inferenceConfig, { maxTokens: 5 });
  assert.equal(requestFor("meta.llama3-8b-instruct-v1:0", "p", 5).prompt, "p");
  assert.deepEqual(requestFor("openai.gpt-oss-20b-1:0", "p", 5).messages, [
    { role: "user", content: "p" },
  ]);
});
