// What learning from feedback changed, in words.

import assert from "node:assert/strict";
import { test } from "node:test";

import { inWords } from "../../services/tuneloop/gateway/web/effects.js";

const effect = (text, times, version = 3) => ({
  policy_version: version,
  text,
  times_as_likely: times,
});

test("nothing before a version has learned from it", () => {
  assert.equal(inWords([]), null);
});

test("an answer is likelier, by three figures", () => {
  assert.equal(
    inWords([effect("answer", 1.3042)]),
    "Version 3 learned from it: this answer is now 1.3 times as likely.",
  );
});

test("the newest version speaks", () => {
  assert.equal(
    inWords([effect("answer", 2, 3), effect("answer", 0.8, 5)]),
    "Version 5 learned from it: this answer is now 0.8 times as likely.",
  );
});

test("an edit and what the model wrote", () => {
  assert.equal(
    inWords([effect("edit", 4321), effect("answer", 0.0001)]),
    "Version 3 learned from it: your better answer is now over 1,000 times as likely, " +
      "what the model wrote is now less than 0.001 times as likely.",
  );
});

test("a pair by the names it has on the page", () => {
  assert.equal(
    inWords([effect("chosen", 1.5), effect("rejected", 1.001)], { chosen: "A", rejected: "B" }),
    "Version 3 learned from it: A is now 1.5 times as likely, B is now as likely as before.",
  );
});
