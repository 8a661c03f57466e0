/**
 * A client of bedrock_proxy's simple dialect, for browsers and for Node 20 and later.
 * One file, nothing to install: copy it.
 *
 *     const client = new BedrockProxyClient({ endpoint: "/ai/bedrock", token });
 *     for await (const piece of await client.stream(requestFor(model, "Say hello."))) {
 *       show(piece.content);
 *     }
 */

/** The request was refused, or the answer broke off. */
export class BedrockProxyError extends Error {
  /**
   * @param {string} message A sentence for people.
   * @param {object} facts For programs:
   *   code: what happened (`rate_limited` …); `network`, `truncated`, `invalid_answer` and
   *     `http_error` are this client's own.
   *   status: the HTTP status; null where there was none, or the answer had begun.
   *   retryable: whether the same request may succeed later.
   *   retryAfter: seconds to wait before that; null where nothing was said.
   *   requestId: what the operator finds the request by; null where it is not known.
   *   limit: the limit that refused it; null where none did.
   */
  constructor(message, facts = {}) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.name = "BedrockProxyError";
    this.code = facts.code ?? "unknown";
    this.status = facts.status ?? null;
    this.retryable = facts.retryable ?? false;
    this.retryAfter = facts.retryAfter ?? null;
    this.requestId = facts.requestId ?? null;
    this.limit = facts.limit ?? null;
  }
}

export class BedrockProxyClient {
  #endpoint;
  #token;
  #fetch;

  /** `fetch` is the platform's own unless you bring another. */
  constructor({ endpoint, token, fetch = globalThis.fetch.bind(globalThis) }) {
    this.#endpoint = endpoint;
    this.#token = token;
    this.#fetch = fetch;
  }

  /**
   * The model's whole answer, in the model's own JSON.
   * Rejects with a BedrockProxyError, or with the signal's reason once it is aborted.
   */
  async invoke(request, { signal } = {}) {
    const response = await this.#post({ ...request, stream: false }, "application/json", signal);
    const text = await fromNetwork(signal, () => response.text());
    return parse(text, response);
  }

  /**
   * Resolves once the answer begins, to an async iterable of its pieces: `{content: "…"}`.
   * A refusal rejects; a fault later on is thrown by the iteration. Leaving the iteration, or
   * aborting the signal, ends the request.
   *
   * @param {object} options
   *   signal: an AbortSignal.
   *   format: `sse` (Server-Sent Events) or `array` (one JSON array). Where the proxy cannot
   *     stream it answers with an array in either case.
   */
  async stream(request, { signal, format = "sse" } = {}) {
    const accept = format === "array" ? "application/json" : "text/event-stream, application/json";
    const response = await this.#post({ ...request, stream: true }, accept, signal);
    return pieces(response, signal);
  }

  /** The pieces of `stream`, as plain text. */
  async *text(request, options = {}) {
    for await (const piece of await this.stream(request, options)) {
      if (typeof piece.content === "string") yield piece.content;
    }
  }

  async #post(request, accept, signal) {
    const response = await fromNetwork(signal, () =>
      this.#fetch(this.#endpoint, {
        method: "POST",
        headers: {
          Authorization: `Bearer ${this.#token}`,
          "Content-Type": "application/json",
          Accept: accept,
        },
        body: JSON.stringify(request),
        signal,
      }),
    );
    if (!response.ok) throw await refusal(response, signal);
    return response;
  }
}

/**
 * Calls `call` until it resolves, while its error says that the same call may succeed later:
 * after as many seconds as the proxy asks for, or a random pause that doubles.
 *
 *     const answer = await withRetry(() => client.stream(request));
 *
 * @param {object} options
 *   attempts: how many calls at most.
 *   longest: seconds; when the proxy asks for more, the error is thrown at once.
 *   signal: ends the waiting.
 *   onWait: told `(seconds, error)` before each pause.
 */
export async function withRetry(
  call,
  { attempts = 3, longest = 60, signal, onWait = () => {} } = {},
) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call(attempt);
    } catch (error) {
      if (!(error instanceof BedrockProxyError) || !error.retryable) throw error;
      const seconds = error.retryAfter ?? Math.random() * 0.5 * 2 ** attempt;
      if (attempt >= attempts || seconds > longest) throw error;
      onWait(seconds, error);
      await pause(seconds, signal);
    }
  }
}

/** A request for a prompt, in the body that the model's family understands. */
export function requestFor(modelId, prompt, maxTokens = 1000) {
  const family = modelId.replace(/^(us|us-gov|eu|apac|jp|au|global)\./, "");
  if (family.startsWith("anthropic.")) {
    return {
      modelId,
      anthropic_version: "bedrock-2023-05-31",
      max_tokens: maxTokens,
      messages: [{ role: "user", content: prompt }],
    };
  }
  if (family.startsWith("amazon.nova")) {
    return {
      modelId,
      messages: [{ role: "user", content: [{ text: prompt }] }],
      inferenceConfig: { maxTokens },
    };
  }
  if (family.startsWith("meta.llama")) return { modelId, prompt, max_gen_len: maxTokens };
  return { modelId, messages: [{ role: "user", content: prompt }], max_tokens: maxTokens };
}

// --- the two formats -------------------------------------------------------------------

/** Server-Sent Events (WHATWG HTML, section 9.2), from text that is cut anywhere. */
export class EventParser {
  #line = "";
  #afterReturn = false;
  #first = true;
  #name = "";
  #data = [];

  /** The events that `text` completes: `{name, data}`. */
  feed(text) {
    const events = [];
    let rest = text;
    if (this.#first && rest !== "") {
      this.#first = false;
      if (rest.startsWith("\uFEFF")) rest = rest.slice(1);
    }
    while (rest !== "") {
      if (this.#afterReturn) {
        // CR LF is one line end, also where it was cut in two.
        this.#afterReturn = false;
        if (rest[0] === "\n") rest = rest.slice(1);
        continue;
      }
      const end = rest.search(/[\r\n]/);
      if (end < 0) {
        this.#line += rest;
        break;
      }
      const line = this.#line + rest.slice(0, end);
      this.#line = "";
      this.#afterReturn = rest[end] === "\r";
      rest = rest.slice(end + 1);
      const event = this.#read(line);
      if (event !== null) events.push(event);
    }
    return events;
  }

  #read(line) {
    if (line === "") {
      const event = { name: this.#name || "message", data: this.#data.join("\n") };
      const whole = this.#data.length > 0;
      this.#name = "";
      this.#data = [];
      return whole ? event : null;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon); // a comment has no name
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
    return null;
  }
}

/** A JSON array of objects, from text that is cut anywhere; each as soon as it is complete. */
export class ArrayParser {
  /** Whether the array was closed. */
  ended = false;
  #opened = false;
  #depth = 0; // below the array itself
  #quoted = false;
  #escaped = false;
  #kept = ""; // the beginning of an object, from earlier texts

  /** The objects that `text` completes. Throws a SyntaxError where it is no such array. */
  feed(text) {
    const found = [];
    let begin = 0; // of the object under way
    for (let at = 0; at < text.length; at += 1) {
      const character = text[at];
      if (this.#quoted) {
        if (this.#escaped) this.#escaped = false;
        else if (character === "\\") this.#escaped = true;
        else if (character === '"') this.#quoted = false;
      } else if (this.#depth === 0) {
        if (this.#between(character)) begin = at;
      } else if (character === '"') {
        this.#quoted = true;
      } else if (character === "{" || character === "[") {
        this.#depth += 1;
      } else if (character === "}" || character === "]") {
        this.#depth -= 1;
        if (this.#depth === 0) {
          found.push(JSON.parse(this.#kept + text.slice(begin, at + 1)));
          this.#kept = "";
        }
      }
    }
    if (this.#depth > 0) this.#kept += text.slice(begin);
    return found;
  }

  /** Whether an object begins with `character`, outside of all objects. */
  #between(character) {
    if (" \t\r\n".includes(character)) return false;
    if (!this.#opened && character === "[") this.#opened = true;
    else if (this.#opened && !this.ended && character === "{") this.#depth = 1;
    else if (this.#opened && !this.ended && character === "]") this.ended = true;
    else if (!this.#opened || this.ended || character !== ",") {
      throw new SyntaxError(`Unexpected ${JSON.stringify(character)} in an array of objects`);
    }
    return this.#depth > 0;
  }
}

async function* pieces(response, signal) {
  const requestId = response.headers.get("x-request-id");
  const isEvents = mediaType(response) === "text/event-stream";
  const read = isEvents ? eventReader() : arrayReader();
  // One decoder for the whole answer: a character may be cut in two.
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await fromNetwork(signal, () => reader.read());
      if (done) throw brokenOff(requestId);
      let said;
      try {
        said = read(decoder.decode(value, { stream: true }));
      } catch (cause) {
        throw invalid(cause, requestId);
      }
      for (const piece of said) {
        if (piece === DONE) return;
        if (typeof piece?.error === "string") throw told(piece, null, requestId);
        yield piece;
      }
    }
  } finally {
    // Ends the request where it has not ended; of no consequence where it has.
    reader.cancel().catch(() => {});
  }
}

const DONE = Symbol("the end that every whole answer has");

function eventReader() {
  const parser = new EventParser();
  return (text) =>
    parser.feed(text).map(({ name, data }) => {
      if (data === "[DONE]") return DONE;
      return name === "error" ? { error: data, ...JSON.parse(data) } : JSON.parse(data);
    });
}

function arrayReader() {
  const parser = new ArrayParser();
  return (text) => parser.feed(text).map((piece) => (piece.done === true ? DONE : piece));
}

// --- what goes wrong -------------------------------------------------------------------

async function refusal(response, signal) {
  const requestId = response.headers.get("x-request-id");
  const text = await fromNetwork(signal, () => response.text());
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Something between us and the proxy answered; its page is not for our users.
  }
  const retryAfter = secondsOf(response.headers.get("retry-after"));
  if (typeof body?.error === "string") return told(body, response.status, requestId, retryAfter);
  return new BedrockProxyError(`The server answered with status ${response.status}.`, {
    code: "http_error",
    status: response.status,
    retryable: [429, 502, 503, 504].includes(response.status),
    retryAfter,
    requestId,
  });
}

/** The error that the proxy's error object tells of. */
function told(body, status, requestId, retryAfter = null) {
  return new BedrockProxyError(body.error, {
    code: body.code,
    status,
    retryable: body.retryable,
    retryAfter: body.retry_after ?? retryAfter,
    requestId: body.request_id ?? requestId,
    limit: body.limit,
  });
}

function brokenOff(requestId) {
  return new BedrockProxyError("The answer broke off before its end.", {
    code: "truncated",
    retryable: true,
    requestId,
  });
}

function invalid(cause, requestId) {
  return new BedrockProxyError("The answer is not what it should be.", {
    code: "invalid_answer",
    requestId,
    cause,
  });
}

function parse(text, response) {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw invalid(cause, response.headers.get("x-request-id"));
  }
}

/** `act()`; its failure is the abort that was asked for, or the network's. */
async function fromNetwork(signal, act) {
  try {
    return await act();
  } catch (cause) {
    signal?.throwIfAborted();
    throw new BedrockProxyError("The connection failed.", {
      code: "network",
      retryable: true,
      cause,
    });
  }
}

/** Retry-After (RFC 9110, section 10.2.3): seconds, or a date. */
function secondsOf(value) {
  if (value === null) return null;
  if (/^\d+$/.test(value.trim())) return Number(value);
  const at = Date.parse(value);
  return Number.isNaN(at) ? null : Math.max(0, (at - Date.now()) / 1000);
}

function mediaType(response) {
  return (response.headers.get("content-type") ?? "").split(";")[0].trim().toLowerCase();
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const leave = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", leave, { once: true });
  });
}
