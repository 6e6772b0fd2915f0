// The service's HTTP surface, as the pages use it.

import { randomId } from "./dom.js";

const KEY = "tuneloop-key";
const USER = "tuneloop-user";

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** Whether the same call may well succeed a little later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status === 503;
  }
}

/** Keeps the key in this tab, and tells the parts that wait for one. */
export function setKey(key) {
  sessionStorage.setItem(KEY, key);
  document.dispatchEvent(new CustomEvent("tuneloop:key-changed"));
}

/** A name for this browser, made up once: judgements are counted per user. */
export function user() {
  let name = localStorage.getItem(USER);
  if (!name) {
    name = `page-${randomId()}`;
    localStorage.setItem(USER, name);
  }
  return name;
}

export async function call(path, options = {}) {
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
  if (response.status === 401) document.dispatchEvent(new CustomEvent("tuneloop:key-needed"));
  throw new ApiError(response.status, message, retryAfter);
}

export const getJson = async (path) => (await call(path)).json();

export async function postJson(path, body = {}) {
  return (await call(path, { method: "POST", body: JSON.stringify(body) })).json();
}

/** Chunks of a streamed answer, parsed. `options` are further members of the request. */
export async function* streamChat(model, messages, options, signal) {
  const body = { model, messages, stream: true, user: user(), ...options };
  const response = await call("/v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify(body),
  });
  for await (const { data } of events(response.body)) {
    if (data === undefined) continue;
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(503, chunk.error.message);
    yield chunk;
  }
  throw new ApiError(0, "The answer was cut off.");
}

/** Server-sent events of a body: `{event, data}`, and `{}` for a comment. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const whole = buffer.split("\n\n");
      buffer = whole.pop();
      for (const text of whole) yield parsed(text);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(text) {
  const fields = {};
  for (const line of text.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return fields;
}

/**
 * Sends feedback, with one id throughout, so that a repeat is never counted twice; the id.
 *
 * While the service cannot store it, it is tried again for as long as `stillWanted` says so.
 */
export async function sendFeedback(feedback, { onWait = () => {}, stillWanted = () => true } = {}) {
  const id = `page-${randomId()}`;
  const body = { id, user: user(), ...feedback };
  await patiently(() => postJson("/v1/feedback", body), onWait, stillWanted);
  return id;
}

export async function retractFeedback(id, { onWait = () => {}, stillWanted = () => true } = {}) {
  const path = `/v1/feedback/${encodeURIComponent(id)}`;
  try {
    await patiently(() => call(path, { method: "DELETE" }), onWait, stillWanted);
  } catch (error) {
    // What was never stored needs no taking back.
    if (error.status !== 404) throw error;
  }
}

async function patiently(attempt, onWait, stillWanted) {
  for (let tries = 0; ; tries += 1) {
    try {
      await attempt();
      return;
    } catch (error) {
      if (!error.passing || tries >= 30) throw error;
      onWait();
      await new Promise((resolve) => setTimeout(resolve, (error.retryAfter ?? 2) * 1000));
      if (!stillWanted()) return;
    }
  }
}
