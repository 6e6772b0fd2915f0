// Counts the work of a function instead of timing it: how often each block of the page's Markdown
// scripts ran, and how many characters and members the built-in methods that they call went over.

import { Session } from "node:inspector/promises";

const SCRIPTS = "/web/markdown";

/** Built-in methods that look at more than one thing, and how much one call looks at. */
const whole = (self) => self.length;
const resulting = (_, result) => result.length;
const SIZES = [
  [
    String.prototype,
    "indexOf",
    (self, end, [, start = 0]) => (end < 0 ? self.length : end + 1) - start,
  ],
  [String.prototype, "replace", whole],
  [String.prototype, "replaceAll", whole],
  [String.prototype, "split", whole],
  [String.prototype, "trim", whole],
  [String.prototype, "trimStart", whole],
  [String.prototype, "trimEnd", whole],
  [String.prototype, "includes", whole],
  [String.prototype, "slice", resulting],
  [String.prototype, "repeat", resulting],
  [Array.prototype, "findLastIndex", whole],
  [Array.prototype, "join", whole],
  [Array.prototype, "map", whole],
  [Array.prototype, "every", whole],
  [Array.prototype, "shift", whole],
  [Array.prototype, "slice", resulting],
  [Array.prototype, "splice", resulting],
];

/** Returns how much work `run` is. */
export async function workOf(run) {
  const session = new Session();
  session.connect();
  await session.post("Profiler.enable");
  await session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
  const looked = lookedAtBy(run);
  const { result } = await session.post("Profiler.takePreciseCoverage");
  session.disconnect();
  const scripts = result.filter(({ url }) => url.includes(SCRIPTS));
  const ranges = scripts.flatMap(({ functions }) => functions.flatMap((one) => one.ranges));
  return looked + ranges.reduce((sum, { count }) => sum + count, 0);
}

function lookedAtBy(run) {
  let looked = 0;
  const originals = SIZES.map(([owner, name]) => owner[name]);
  for (const [index, [owner, name, size]] of SIZES.entries()) {
    owner[name] = function (...given) {
      const result = originals[index].apply(this, given);
      looked += size(this, result, given);
      return result;
    };
  }
  try {
    run();
  } finally {
    for (const [index, [owner, name]] of SIZES.entries()) owner[name] = originals[index];
  }
  return looked;
}
