// Feedback in words, for the dashboard and the browser.

import { icon } from "./dom.js";
import { figure } from "./format.js";

const ICONS = {
  comparison: "scale",
  ranking: "list",
  demonstration: "pencil",
  comment: "comment",
  rating: "star",
  metric: "gauge",
};
const NAMES = {
  comparison: "Comparison",
  ranking: "Ranking",
  demonstration: "Better answer",
  comment: "Comment",
  rating: "Rating",
  thumb: "Thumb",
};

export const kindIcon = (item) =>
  icon(item.kind === "thumb" ? item.value : (ICONS[item.kind] ?? "comment"));

export function headline(item) {
  if (item.kind === "thumb") return item.value === "up" ? "Thumbs up" : "Thumbs down";
  if (item.kind === "rating") return `Rating ${figure(item.value)}`;
  if (item.kind === "metric") return `${item.name}: ${metricValue(item.value)}`;
  return NAMES[item.kind] ?? item.kind;
}

const metricValue = (value) =>
  typeof value === "boolean" ? (value ? "yes" : "no") : figure(value);

/** What the user asked last, in a line. */
export function question(item) {
  const { prompt } = item;
  if (!prompt) return "The prompt is not known yet.";
  if (typeof prompt === "string") return prompt;
  return (
    prompt.findLast((message) => message.role === "user")?.content ?? prompt.at(-1)?.content ?? ""
  );
}
