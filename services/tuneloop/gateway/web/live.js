// What the service does, live: `/v1/events` over fetch, as an EventSource cannot carry a key.

import { call, events } from "./api.js";

const SHORTEST = 1000;
const LONGEST = 15_000;
const SILENCE = 60_000;

/**
 * Calls `handlers[event](data)` for each event, while the page is visible.
 *
 * `handlers.state` is called with "live", "away" (it tries again by itself) and "refused" (with the error).
 */
export function listen(handlers) {
  let controller = null;
  let delay = SHORTEST;
  let timer = null;
  let watch = null;

  async function run() {
    clearTimeout(timer);
    controller?.abort();
    const mine = new AbortController();
    controller = mine;
    try {
      const response = await call("/v1/events", { signal: mine.signal });
      for await (const { event, data } of events(response.body)) {
        if (mine.signal.aborted) return;
        // A connection that died without being closed would stay silent.
        clearTimeout(watch);
        watch = setTimeout(run, SILENCE);
        delay = SHORTEST;
        handlers.state?.("live");
        if (event) handlers[event]?.(JSON.parse(data));
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401 || error.status === 403 || error.status === 404) {
        handlers.state?.("refused", error);
        return;
      }
    }
    if (mine.signal.aborted) return;
    clearTimeout(watch);
    handlers.state?.("away");
    timer = setTimeout(run, delay);
    delay = Math.min(2 * delay, LONGEST);
  }

  function rest() {
    clearTimeout(timer);
    clearTimeout(watch);
    controller?.abort();
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : run()));
  document.addEventListener("tuneloop:key-changed", run);
  // A page that is kept for the back button must not hold a connection.
  addEventListener("pagehide", rest);
  addEventListener("pageshow", (event) => event.persisted && run());
  run();
}
