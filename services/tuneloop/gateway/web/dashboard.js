// The dashboard: what answers, what is learned, and what that does, live.

import { postJson } from "./api.js";
import { Chart, Sparkline } from "./charts.js";
import { $, el, say } from "./dom.js";
import { headline, kindIcon, question } from "./feedback-text.js";
import { ago, count, figure, moment, percent, plural } from "./format.js";
import { listen } from "./live.js";
import { askForKey, confirmAction, openShell } from "./shell.js";
import { WORDS } from "./status.js";
import {
  lengthPoints,
  metricSeries,
  rewardPoints,
  thoughtLengthPoints,
  thumbPoints,
} from "./traffic.js";
import { Timeline } from "./versions.js";

const OBJECTIVES = {
  judgements: "thumbs, comparisons, edits",
  kto: "thumbs",
  dpo: "pairs",
  sft: "better answers",
  ppo: "scored answers (PPO)",
  grpo: "scored answers (GRPO)",
  rloo: "scored answers (RLOO)",
  reward_model: "labels for the reward model",
};

const connection = el(
  "span",
  { class: "learner", role: "status" },
  el("span", { class: "dot", "aria-hidden": "true" }),
  el("span", {}, "connecting"),
);
openShell({ extras: [connection] });

const timeline = new Timeline();
const spark = new Sparkline("tokens per second");
const charts = {
  thumbs: new Chart({
    title: "Thumbs up",
    note: "Share of thumbs that are up, with the 95% interval.",
    xName: "version",
    format: percent,
    bounds: [0, 1],
    empty: "No thumbs yet",
  }),
  reward: new Chart({
    title: "Reward",
    note: "Mean reward of a version's answers, with the 95% interval.",
    xName: "version",
    empty: "No scored answers yet",
  }),
  length: new Chart({
    title: "Length",
    note: "Mean length of a version's answers in tokens, with the 95% interval.",
    xName: "version",
    empty: "No answers yet",
  }),
  thoughtLength: new Chart({
    title: "Length of thoughts",
    note: "Mean length of what a version thinks before an answer, in tokens, with the 95% interval.",
    xName: "version",
    empty: "No thoughts yet",
  }),
  loss: new Chart({
    title: "Loss",
    note: "Loss of each of the last 200 optimizer steps.",
    xName: "step",
    empty: "No steps yet",
  }),
  kl: new Chart({
    title: "KL",
    note: "KL divergence of each step's policy from the base model, per token.",
    xName: "step",
    empty: "No steps with a KL yet",
  }),
};
/** Charts of metrics, by name and type: applications name them. */
const metricCharts = new Map();
const MOST_METRICS = 6;
$("by-version").append(charts.thumbs.node, charts.reward.node, charts.length.node);
$("by-step").append(charts.loss.node, charts.kl.node);
$("timeline").append(timeline.node);
$("spark").append(spark.node);

let since = null;

const tried = (canary) =>
  canary
    ? `. Version ${canary.policy_version} is being tried on ${percent(canary.share)} of users`
    : "";

function showPolicies(document) {
  const serving = document?.serving ?? null;
  say($("serving"), serving ? `version ${serving.policy_version}` : "–");
  since = serving?.activated_time ?? null;
  showSince();
  say(
    $("model"),
    serving
      ? `${serving.base_model}, ${serving.engine}${tried(serving.canary)}`
      : "The generation service is down.",
  );
  timeline.show(document);
  const versions = [...(document?.data ?? [])].sort(
    (one, other) => one.policy_version - other.policy_version,
  );
  const marked = document?.policy_version ?? null;
  charts.thumbs.show(thumbPoints(versions), marked);
  charts.reward.show(rewardPoints(versions), marked);
  charts.length.show(lengthPoints(versions), marked);
  const thoughts = thoughtLengthPoints(versions);
  if (thoughts.length) charts.length.node.after(charts.thoughtLength.node);
  charts.thoughtLength.show(thoughts, marked);
  for (const { name, type, points } of metricSeries(versions).slice(0, MOST_METRICS))
    metricChart(name, type).show(points, marked);
}

function metricChart(name, type) {
  const key = `${name} ${type}`;
  if (!metricCharts.has(key)) {
    const boolean = type === "boolean";
    const chart = new Chart({
      title: name,
      note: `${boolean ? "Share that is true" : "Mean"} of what was measured of a version's answers, with the 95% interval.`,
      xName: "version",
      ...(boolean ? { format: percent, bounds: [0, 1] } : {}),
      empty: "Nothing measured yet",
    });
    metricCharts.set(key, chart);
    $("by-version").append(chart.node);
  }
  return metricCharts.get(key);
}

function showLearner(status) {
  const state = status?.state ?? "away";
  $("learner-state").dataset.state = state;
  say($("learner-word"), status ? (WORDS[state] ?? state) : "down");
  showPause(state);
  say($("waiting-for"), status ? waiting(status) : "Feedback is kept until it is back.");
  showProgress(status);
  say($("feedback-count"), status ? count(status.feedback_events) : "–");
  say(
    $("data-note"),
    status ? `${plural(status.rollouts, "answer")}, ${plural(used(status), "sample")} used` : "",
  );
  say($("step"), status ? count(status.step) : "–");
  const { loss, kl } = status?.last_step_metrics ?? {};
  say($("step-loss"), figure(loss));
  say($("step-kl"), figure(kl));
  say($("staleness"), figure(status?.staleness));
}

/** Learning can be paused. Answers go on, and feedback is kept for later. */
function showPause(state) {
  const paused = state === "paused";
  $("pause").disabled = state === "away";
  say($("pause"), paused ? "Resume" : "Pause");
  $("pause").onclick = () => {
    const question = paused
      ? {
          title: "Resume learning?",
          text: "The learner catches up on the feedback given since the pause.",
          action: "Resume learning",
          run: () => postJson("/v1/learner/resume"),
        }
      : {
          title: "Pause learning?",
          text: "Answers go on, and feedback is kept until you resume.",
          action: "Pause learning",
          run: () => postJson("/v1/learner/pause"),
        };
    confirmAction(question);
  };
}

const used = (status) => status.samples.reduce((sum, sample) => sum + sample.used, 0);

const waiting = (status) =>
  status.state === "waiting" && status.waiting_for
    ? `Waiting for ${status.waiting_for}.`
    : status.last_step_time
      ? `Last step ${ago(status.last_step_time)}.`
      : "";

function showProgress(status) {
  const rows = (status?.progress ?? []).map(({ objective, have, want }) => [
    OBJECTIVES[objective] ?? objective,
    have,
    want,
    have < want ? `${count(have)} of ${count(want)}` : `${count(have)} ready`,
  ]);
  const publish = status?.publish;
  if (publish) {
    const soon = publish.seconds_left > 0 ? `, or in ${Math.ceil(publish.seconds_left)} s` : "";
    rows.push([
      "full steps to the next version",
      publish.evidence,
      publish.steps_wanted,
      `${figure(publish.evidence)} of ${publish.steps_wanted}${soon}`,
    ]);
  }
  const list = $("progress");
  // Existing rows are kept, so that the bars move.
  while (list.childElementCount > rows.length) list.lastElementChild.remove();
  rows.forEach(([name, have, want, words], index) => {
    const id = `progress-${index}`;
    if (!list.children[index]) {
      list.append(
        el(
          "li",
          {},
          el("label", { for: id }),
          el("span", { class: "note" }),
          el("progress", { id }),
        ),
      );
    }
    const [label, note, bar] = list.children[index].children;
    say(label, name);
    say(note, words);
    bar.max = Math.max(1, want);
    bar.value = Math.min(have, want);
  });
}

function showThroughput(rates) {
  say($("tokens"), figure(rates?.tokens_per_second));
  say(
    $("requests"),
    `${figure(rates?.requests_per_second)} answers/s, ${rates?.in_flight ?? "–"} in flight`,
  );
}

function showFeedback(document) {
  const items = (document?.data ?? [])
    .slice(0, 8)
    .map((item) =>
      el(
        "li",
        { class: `kind-${item.kind}`, "data-value": item.kind === "thumb" ? item.value : null },
        kindIcon(item),
        el(
          "div",
          {},
          el("strong", {}, headline(item)),
          el("p", { class: "clip" }, item.text ?? question(item)),
        ),
        el(
          "span",
          { class: "note", title: moment(item.accepted_time) },
          `${item.policy_version === null ? "" : `version ${item.policy_version}, `}${ago(item.accepted_time)}`,
        ),
      ),
    );
  if (!items.length)
    items.push(
      el("li", { class: "nothing" }, document ? "No feedback yet." : "The learner is down."),
    );
  $("latest").replaceChildren(...items);
}

function showSteps(document) {
  const steps = document?.data ?? [];
  for (const name of ["loss", "kl"]) {
    charts[name].show(
      steps.filter((step) => step[name] !== null).map((step) => ({ x: step.step, y: step[name] })),
    );
  }
}

function showState(state, error) {
  const words = { live: "live", away: "service unreachable, retrying", refused: "needs a key" };
  connection.dataset.state = state === "refused" ? "away" : state;
  say(connection.lastChild, words[state]);
  document.body.classList.toggle("stale", state !== "live");
  if (state === "refused" && error.status === 403)
    askForKey("This page needs a key with the admin scope. The key stays in this tab.");
}

const showSince = () => say($("since"), since ? `Went live ${ago(since)}` : "");

// The service says only what has changed: rates go on, also when they stay as they are.
let tokens = 0;
setInterval(() => spark.add(tokens), 1000);

// … and what was "just now" grows older.
const latest = {};
setInterval(() => {
  showSince();
  if ("learner" in latest) showLearner(latest.learner);
  if ("feedback" in latest) showFeedback(latest.feedback);
  timeline.draw();
}, 20_000);

listen({
  policies: showPolicies,
  steps: showSteps,
  learner: (status) => {
    latest.learner = status;
    showLearner(status);
  },
  feedback: (document) => {
    latest.feedback = document;
    showFeedback(document);
  },
  throughput: (rates) => {
    tokens = rates?.tokens_per_second ?? 0;
    showThroughput(rates);
  },
  state: showState,
});
