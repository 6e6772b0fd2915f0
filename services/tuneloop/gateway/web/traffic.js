// What a version's traffic says: values with intervals, as far as there are enough samples.

import { count, figure, percent } from "./format.js";

/** With fewer samples an interval says nothing. */
export const ENOUGH = 5;

/** Thumbs up of each version; `versions` are those of `GET /v1/policies`. */
export function thumbPoints(versions) {
  return pointsOf(versions, (traffic) => ({
    y: traffic.thumbs_rate,
    low: traffic.thumbs_low,
    high: traffic.thumbs_high,
    samples: thumbsOf(traffic),
  }));
}

/** Mean reward; a reward may be any number. */
export function rewardPoints(versions) {
  return pointsOf(versions, (traffic) => ({
    ...around(traffic.mean_reward, traffic.reward_margin),
    // How many of them were scored is not known; it is no more than this.
    samples: traffic.rollouts,
  }));
}

/** Mean length of answers in tokens, never below zero. */
export function lengthPoints(versions) {
  return pointsOf(versions, (traffic) => ({
    ...around(traffic.mean_length, traffic.length_margin, 0),
    samples: traffic.rollouts,
  }));
}

/** The same of the thoughts before them; none of a model that does not reason. */
export function thoughtLengthPoints(versions) {
  if (!versions.some(({ traffic }) => traffic?.mean_thought_length)) return [];
  return pointsOf(versions, (traffic) => ({
    ...around(traffic.mean_thought_length, traffic.thought_length_margin, 0),
    samples: traffic.rollouts,
  }));
}

/** The metrics that any version has: `[{name, type, points}]`, by name. */
export function metricSeries(versions) {
  const found = new Map();
  for (const { traffic } of versions)
    for (const { name, type } of traffic?.metrics ?? [])
      found.set(`${name} ${type}`, { name, type });
  return [...found.entries()]
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .map(([, { name, type }]) => ({ name, type, points: metricPoints(versions, name, type) }));
}

function metricPoints(versions, name, type) {
  return pointsOf(versions, (traffic) => {
    const figures = traffic.metrics?.find((one) => one.name === name && one.type === type);
    return figures
      ? { y: figures.mean, low: figures.low, high: figures.high, samples: figures.count }
      : {};
  });
}

/** The metrics of a version in words; empty without any. */
export function metricsInWords(traffic) {
  return (traffic?.metrics ?? [])
    .filter((figures) => figures.count >= ENOUGH)
    .map(({ name, type, mean }) => `${name} ${type === "boolean" ? percent(mean) : figure(mean)}`)
    .join(", ");
}

/** The thumbs of a version in words; empty before the first. */
export function thumbsInWords(traffic) {
  const thumbs = traffic ? thumbsOf(traffic) : 0;
  if (!thumbs) return "";
  if (thumbs < ENOUGH) return `${count(traffic.thumbs_up)} of ${count(thumbs)} thumbs up`;
  return `${percent(traffic.thumbs_rate)} thumbs up`;
}

const thumbsOf = (traffic) => traffic.thumbs_up + traffic.thumbs_down;

const isKnown = (number) => number !== null && number !== undefined;

/** Returns `{x, y, low?, high?, tooFew?}` of each version that has a value. */
function pointsOf(versions, read) {
  return versions
    .filter(({ traffic }) => traffic)
    .map(({ policy_version: x, traffic }) => ({ x, ...read(traffic) }))
    .filter(({ y }) => isKnown(y))
    .map(({ x, y, low, high, samples }) => {
      if (samples < ENOUGH) return { x, y, tooFew: true };
      return isKnown(low) ? { x, y, low, high } : { x, y };
    });
}

function around(y, margin, least = Number.NEGATIVE_INFINITY) {
  return isKnown(margin) ? { y, low: Math.max(least, y - margin), high: y + margin } : { y };
}
