// The dashboard: what answers, what is learned, and what that does, live.

import { postJson } from "./api.js";
import { Chart, Sparkline } from "./charts.js";
import { $, el, say } from "./dom.js";
import { headline, kindIcon, question } from "./feedback-text.js";
import { ago, count, figure, moment, percent, plural } from "./format.js";
import { listen } from "./live.js";
import { askForKey, confirmAction, openShell } from "./shell.js";
import { WORDS } from "./status.js";
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
    note: "Share of thumbs on a version's answers, with the 95 % interval.",
    xName: "version",
    format: percent,
    bounds: [0, 1],
    empty: "No thumbs yet",
  }),
  reward: new Chart({
    title: "Reward",
    note: "Mean reward of a version's answers, with the 95 % interval.",
    xName: "version",
    empty: "Nothing scored yet",
  }),
  length: new Chart({
    title: "Length",
    note: "Mean tokens of a version's answers, with the 95 % interval.",
    xName: "version",
    empty: "No answers yet",
  }),
  loss: new Chart({
    title: "Loss",
    note: "Of each optimizer step, the last 200.",
    xName: "step",
    empty: "No step yet",
  }),
  kl: new Chart({
    title: "KL",
    note: "How far each step's policy is from the base model, by token.",
    xName: "step",
    empty: "No step with a KL yet",
  }),
};
$("by-version").append(charts.thumbs.node, charts.reward.node, charts.length.node);
$("by-step").append(charts.loss.node, charts.kl.node);
$("timeline").append(timeline.node);
$("spark").append(spark.node);

let since = null;

const tried = (canary) =>
  canary
    ? `. Version ${canary.policy_version} is tried on ${percent(canary.share)} of the users`
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
      : "Generation is away.",
  );
  timeline.show(document);
  const versions = [...(document?.data ?? [])].sort(
    (one, other) => one.policy_version - other.policy_version,
  );
  const marked = document?.policy_version ?? null;
  const traffic = versions
    .filter((version) => version.traffic)
    .map(({ policy_version: x, traffic }) => ({ x, ...traffic }));
  charts.thumbs.show(
    traffic
      .filter((one) => one.thumbs_rate !== null)
      .map((one) => ({ x: one.x, y: one.thumbs_rate, low: one.thumbs_low, high: one.thumbs_high })),
    marked,
  );
  charts.reward.show(points(traffic, "mean_reward", "reward_margin"), marked);
  charts.length.show(points(traffic, "mean_length", "length_margin"), marked);
}

function points(traffic, name, margin) {
  return traffic
    .filter((one) => one[name] !== null && one[name] !== undefined)
    .map((one) => {
      const point = { x: one.x, y: one[name] };
      if (one[margin] !== null)
        Object.assign(point, { low: one[name] - one[margin], high: one[name] + one[margin] });
      return point;
    });
}

function showLearner(status) {
  const state = status?.state ?? "away";
  $("learner-state").dataset.state = state;
  say($("learner-word"), status ? (WORDS[state] ?? state) : "away");
  showPause(state);
  say($("waiting-for"), status ? waiting(status) : "What comes in is kept until it is back.");
  showProgress(status);
  say($("feedback-count"), status ? count(status.feedback_events) : "–");
  say(
    $("data-note"),
    status
      ? `${plural(status.rollouts, "answer")}, ${plural(used(status), "sample")} learned from`
      : "",
  );
  say($("step"), status ? count(status.step) : "–");
  const { loss, kl } = status?.last_step_metrics ?? {};
  say($("step-loss"), figure(loss));
  say($("step-kl"), figure(kl));
  say($("staleness"), figure(status?.staleness));
}

/** Learning can be paused; answering goes on, and what is said meanwhile is kept. */
function showPause(state) {
  const paused = state === "paused";
  $("pause").disabled = state === "away";
  say($("pause"), paused ? "Resume" : "Pause");
  $("pause").onclick = () => {
    const question = paused
      ? {
          title: "Learn again?",
          text: "What was said meanwhile is learned from.",
          action: "Resume learning",
          run: () => postJson("/v1/learner/resume"),
        }
      : {
          title: "Pause learning?",
          text: "Answers go on, and what is said is kept until learning is resumed.",
          action: "Pause learning",
          run: () => postJson("/v1/learner/pause"),
        };
    confirmAction(question);
  };
}

const used = (status) => status.samples.reduce((sum, sample) => sum + sample.used, 0);

const waiting = (status) =>
  status.state === "waiting" && status.waiting_for
    ? `Waits for ${status.waiting_for}.`
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
      "steps to a version",
      publish.steps_done,
      publish.steps_wanted,
      `${publish.steps_done} of ${publish.steps_wanted}${soon}`,
    ]);
  }
  const list = $("progress");
  // Kept where it can be, so that the bars move and are not built anew.
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
      el(
        "li",
        { class: "nothing" },
        document ? "Nobody has said anything yet." : "The learner is away.",
      ),
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
  const words = { live: "live", away: "the service is away; trying again", refused: "needs a key" };
  connection.dataset.state = state === "refused" ? "away" : state;
  say(connection.lastChild, words[state]);
  document.body.classList.toggle("stale", state !== "live");
  if (state === "refused" && error.status === 403)
    askForKey("This page needs a key with the scope admin. It stays in this tab.");
}

const showSince = () => say($("since"), since ? `since ${ago(since)}` : "");

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
