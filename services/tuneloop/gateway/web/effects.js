// What learning from feedback changed, in words: how much likelier or less likely a text has become.

import { getJson } from "./api.js";
import { figure } from "./format.js";

const TEXTS = {
  answer: "this answer",
  edit: "your better answer",
  chosen: "the better one",
  rejected: "the other one",
};
const OF_AN_EDIT = { answer: "what the model wrote" };

const getFeedback = (id) => getJson(`/v1/feedback/${encodeURIComponent(id)}`);

/** The version that learned from feedback; null before one has. */
export async function versionThatLearned(feedbackId) {
  return learnedBy(await getFeedback(feedbackId));
}

/** What the newest version that learned from feedback changed; null before one has. */
export async function whatChanged(feedbackId, names = {}) {
  const given = await getFeedback(feedbackId);
  const version = learnedBy(given);
  if (version === null) return null;
  // Of many at once not all are measured.
  return inWords(given.effects ?? [], names) ?? `Version ${version} learned from it.`;
}

const learnedBy = ({ effects, used_by_versions: used }) =>
  effects?.at(-1)?.policy_version ?? used?.[0] ?? null;

/** `names` says what to call the texts, by what they are. */
export function inWords(effects, names = {}) {
  if (!effects.length) return null;
  const version = effects.at(-1).policy_version;
  const its = effects.filter((effect) => effect.policy_version === version);
  const edited = its.some((effect) => effect.text === "edit") ? OF_AN_EDIT : {};
  const called = { ...TEXTS, ...edited, ...names };
  const parts = its.map(
    ({ text, times_as_likely: times }) => `${called[text] ?? text} is now ${likelier(times)}`,
  );
  return `Version ${version} learned from it: ${parts.join(", ")}.`;
}

function likelier(times) {
  if (times >= 1000) return "over 1,000 times as likely";
  if (times < 0.001) return "less than 0.001 times as likely";
  if (Math.abs(times - 1) < 0.005) return "as likely as before";
  return `${figure(times)} times as likely`;
}
