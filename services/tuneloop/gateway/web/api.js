// The service's HTTP surface, as the page uses it.

const KEY = "tuneloop-key";
const USER = "tuneloop-user";

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const setKey = (key) => sessionStorage.setItem(KEY, key);

/** A name for this browser, made up once: thumbs are counted per user. */
export function user() {
  let name = localStorage.getItem(USER);
  if (!name) {
    name = `page-${randomId()}`;
    localStorage.setItem(USER, name);
  }
  return name;
}

export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function call(path, options = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (options.body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service cannot be reached.");
  }
  if (response.ok) return response;
  const retryAfter = Number(response.headers.get("retry-after")) || undefined;
  let message = `The service answered with status ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // A proxy's error page: the status has to do.
  }
  throw new ApiError(response.status, message, retryAfter);
}

export const getJson = async (path) => (await call(path)).json();

/** Chunks of a streamed answer, parsed. */
export async function* streamChat(model, messages, signal) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify({ model, messages, stream: true, user: user() }),
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(503, chunk.error.message);
    yield chunk;
  }
  throw new ApiError(0, "The answer was cut off.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const event = buffer.slice(0, end);
        buffer = buffer.slice(end + 2);
        if (event.startsWith("data: ")) yield event.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Sends a thumb; with one id throughout, so that a repeat is never counted twice. */
export async function sendThumb(completionId, value, onWait, stillWanted) {
  const body = JSON.stringify({
    id: `page-${randomId()}`,
    kind: "thumb",
    completion_id: completionId,
    value,
    user: user(),
  });
  for (let attempt = 0; ; attempt += 1) {
    try {
      await call("/v1/feedback", { method: "POST", body });
      return;
    } catch (error) {
      const passing = error.status === 0 || error.status === 429 || error.status === 503;
      if (!passing || attempt >= 30) throw error;
      onWait();
      await new Promise((resolve) => setTimeout(resolve, (error.retryAfter ?? 2) * 1000));
      if (!stillWanted()) return;
    }
  }
}
