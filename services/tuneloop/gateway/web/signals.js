// What a person does with answers, told to the service, which weighs it against thumbs.

import { call, user } from "./api.js";

const SWITCH = "tuneloop-signals";
let refused = false;

export const signalsAreOn = () => localStorage.getItem(SWITCH) !== "off";

export function switchSignals(on) {
  localStorage.setItem(SWITCH, on ? "on" : "off");
}

/** Sends a signal once; one that is lost is no judgement lost. */
export async function sendSignal(kind, completionId, extra = {}) {
  if (refused || !completionId || !signalsAreOn()) return;
  const signals = [{ kind, completion_id: completionId, user: user(), ...extra }];
  try {
    // Also while the page is being left.
    const options = { method: "POST", body: JSON.stringify({ signals }), keepalive: true };
    await call("/v1/signals", options);
  } catch (error) {
    // This service takes none, or not with this key.
    if (error.status === 403) refused = true;
  }
}

/** Which share of a text an edit changed, 0 to 1: what is neither its beginning nor its end. */
export function shareChanged(before, after) {
  const longest = Math.max(before.length, after.length);
  const shortest = Math.min(before.length, after.length);
  let start = 0;
  while (start < shortest && before[start] === after[start]) start += 1;
  let end = 0;
  while (end < shortest - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  return longest ? (longest - start - end) / longest : 0;
}
