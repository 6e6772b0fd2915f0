// What the dashboard says of a version's traffic.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  lengthPoints,
  metricSeries,
  metricsInWords,
  rewardPoints,
  thoughtLengthPoints,
  thumbPoints,
  thumbsInWords,
} from "../../services/tuneloop/gateway/web/traffic.js";

const TRAFFIC = {
  rollouts: 5,
  mean_length: 68,
  length_margin: 117,
  mean_reward: 0.5,
  reward_margin: 2,
  thumbs_up: 2,
  thumbs_down: 3,
  thumbs_rate: 0.4,
  thumbs_low: 0.12,
  thumbs_high: 0.77,
};

const versions = (...traffics) =>
  traffics.map((traffic, index) => ({ policy_version: index, traffic }));

test("a length is never below zero, a reward may be", () => {
  assert.deepEqual(lengthPoints(versions(TRAFFIC)), [{ x: 0, y: 68, low: 0, high: 185 }]);
  assert.deepEqual(rewardPoints(versions(TRAFFIC)), [{ x: 0, y: 0.5, low: -1.5, high: 2.5 }]);
  assert.deepEqual(thumbPoints(versions(TRAFFIC)), [{ x: 0, y: 0.4, low: 0.12, high: 0.77 }]);
});

test("thoughts have a length of their own, if any version thinks", () => {
  const thinks = { ...TRAFFIC, mean_thought_length: 40, thought_length_margin: 5 };
  const mute = { ...TRAFFIC, mean_thought_length: 0, thought_length_margin: 0 };
  assert.deepEqual(thoughtLengthPoints(versions(mute, thinks)), [
    { x: 0, y: 0, low: 0, high: 0 },
    { x: 1, y: 40, low: 35, high: 45 },
  ]);
  assert.deepEqual(thoughtLengthPoints(versions(mute, TRAFFIC)), []);
});

test("fewer than five samples have no interval", () => {
  const few = { ...TRAFFIC, rollouts: 4, thumbs_down: 2, thumbs_rate: 0.5 };
  assert.deepEqual(lengthPoints(versions(few)), [{ x: 0, y: 68, tooFew: true }]);
  assert.deepEqual(rewardPoints(versions(few)), [{ x: 0, y: 0.5, tooFew: true }]);
  assert.deepEqual(thumbPoints(versions(few)), [{ x: 0, y: 0.5, tooFew: true }]);
});

test("what is not known is left out", () => {
  const unknown = { ...TRAFFIC, mean_reward: null, thumbs_rate: null, length_margin: null };
  assert.deepEqual(rewardPoints(versions(undefined, unknown)), []);
  assert.deepEqual(thumbPoints(versions(null, unknown)), []);
  assert.deepEqual(lengthPoints(versions(null, unknown)), [{ x: 1, y: 68 }]);
});

test("thumbs in words", () => {
  assert.equal(thumbsInWords(TRAFFIC), "40% thumbs up");
  assert.equal(
    thumbsInWords({ ...TRAFFIC, thumbs_down: 1, thumbs_rate: 2 / 3 }),
    "2 of 3 thumbs up",
  );
  assert.equal(thumbsInWords({ ...TRAFFIC, thumbs_up: 0, thumbs_down: 0 }), "");
  assert.equal(thumbsInWords(null), "");
});

const SOLVED = { name: "solved", type: "boolean", count: 8, mean: 0.5, low: 0.22, high: 0.78 };
const SECONDS = { name: "seconds", type: "number", count: 5, mean: 3.25, low: 3, high: 3.5 };

test("each metric is a series, and a name with two types is two", () => {
  const number = { ...SOLVED, type: "number", count: 1, low: null, high: null };
  const found = metricSeries(
    versions({ ...TRAFFIC, metrics: [SECONDS, SOLVED] }, TRAFFIC, {
      ...TRAFFIC,
      metrics: [number],
    }),
  );
  assert.deepEqual(found, [
    { name: "seconds", type: "number", points: [{ x: 0, y: 3.25, low: 3, high: 3.5 }] },
    { name: "solved", type: "boolean", points: [{ x: 0, y: 0.5, low: 0.22, high: 0.78 }] },
    { name: "solved", type: "number", points: [{ x: 2, y: 0.5, tooFew: true }] },
  ]);
});

test("metrics in words", () => {
  assert.equal(metricsInWords({ metrics: [SECONDS, SOLVED] }), "seconds 3.25, solved 50%");
  assert.equal(metricsInWords({ metrics: [{ ...SOLVED, count: 4 }] }), "");
  assert.equal(metricsInWords(null), "");
});
