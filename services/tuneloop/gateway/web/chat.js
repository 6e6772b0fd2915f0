// The chat page: a conversation with a model that learns, and all that can be said of its answers.

import { stream } from "./answering.js";
import { Conversation, newAnswer } from "./conversation.js";
import { $, announce, el, icon, say } from "./dom.js";
import { SessionRating } from "./session.js";
import { openShell } from "./shell.js";
import { sendSignal, signalsAreOn, switchSignals } from "./signals.js";
import { Status } from "./status.js";
import { TurnView } from "./turn.js";

const log = $("log");
const prompt = $("prompt");
const conversation = new Conversation();
const views = new Map();
const status = new Status({ onVersion: versionChanged, onLoaded: fillVersions });
let running = null;

const actions = {
  changed: () => conversation.save(),
  following,
  retry: (turn) => retry(turn),
  regenerate: (turn) => regenerate(turn),
  learnsFromComments: () => status.learnsFromComments,
};

/* the end stays in sight while it is being read */

const scroller = document.scrollingElement;
const toBottom = () => scroller.scrollTo({ top: scroller.scrollHeight });

function following(change) {
  const follow = scroller.scrollHeight - scroller.scrollTop - innerHeight < 120;
  change();
  if (follow) toBottom();
}

function drawTurns() {
  const { turns } = conversation;
  $("empty").hidden = turns.length > 0;
  $("new-chat").hidden = turns.length === 0;
  for (const turn of turns) {
    if (views.has(turn.key)) continue;
    const view = new TurnView(turn, actions);
    views.set(turn.key, view);
    log.append(view.node);
  }
  for (const turn of turns) views.get(turn.key).setLast(turn === conversation.last);
  rating.draw();
}

const rating = new SessionRating($("session"), conversation, actions);

const lastView = () => (conversation.last ? views.get(conversation.last.key) : null);

/* asking */

function ask(question) {
  sendSignal("follow_up", shownAnswer()?.completionId);
  const turn = conversation.add(question);
  const versions = sideBySide() ? chosenVersions() : [null];
  const answers = versions.map((version) => newAnswer(version));
  turn.answers.push(...answers);
  if (answers.length > 1) turn.pair = pairOf(versions);
  hideNotice();
  drawTurns();
  toBottom();
  return answer(turn, answers);
}

/** Two versions are shown in no known order, and by name only when one was picked. */
function pairOf(versions) {
  const blind = versions[0] !== versions[1];
  const turned = blind && crypto.getRandomValues(new Uint8Array(1))[0] % 2 === 1;
  const [left, right] = turned ? [1, 0] : [0, 1];
  return { left, right, blind, pick: null, feedbackIds: [] };
}

async function answer(turn, answers) {
  const controller = new AbortController();
  setRunning(controller);
  announce("The model is answering.");
  const view = views.get(turn.key);
  await stream({
    model: status.policy,
    messages: conversation.messagesBefore(turn),
    sessionId: conversation.session.id,
    answers,
    signal: controller.signal,
    onChange: (one) => view.update(one),
  });
  if (running === controller) setRunning(null);
  if (!conversation.turns.includes(turn)) return;
  conversation.save();
  tellEnd(answers);
  rating.draw();
  const seen = answers.find((one) => one.asked === null && one.version !== null);
  if (seen) status.see(seen.version);
  offerAgain();
}

/** Screen readers hear an answer once, when it is whole, and not word by word. */
function tellEnd(answers) {
  const texts = answers.map((one, index) => {
    const name = answers.length > 1 ? `Answer ${"AB"[index]}` : "Answer";
    return one.failure ? `${name} failed.` : `${name}: ${one.text || "no text"}`;
  });
  announce(texts.join(" "));
}

function again(turn, { beside }) {
  if (running) return;
  const before = turn.shown;
  const fresh = newAnswer();
  turn.answers.push(fresh);
  turn.shown = turn.answers.length - 1;
  turn.pair = beside
    ? { left: before, right: turn.shown, blind: false, pick: null, feedbackIds: [] }
    : null;
  hideNotice();
  views.get(turn.key).draw();
  toBottom();
  answer(turn, [fresh]);
}

function regenerate(turn) {
  if (running) return;
  sendSignal("regenerated", turn.answers[turn.shown]?.completionId);
  again(turn, { beside: false });
}

/** An answer that is still being written when its reader leaves is abandoned. */
function leave() {
  if (running) sendSignal("abandoned", shownAnswer()?.completionId);
}

/** What failed goes, and is asked once more. */
function retry(turn) {
  if (running) return;
  turn.answers = turn.answers.map((one) => (one.failure ? newAnswer(one.asked) : one));
  views.get(turn.key).draw();
  answer(
    turn,
    turn.answers.filter((one) => one.finish === null),
  );
}

/* a new version */

const TOLD = 8;

/** What a new version learned from the last turns. */
async function showEffects() {
  for (const turn of conversation.turns.slice(-TOLD)) await views.get(turn.key)?.showEffects();
  await rating.showEffect();
}

function versionChanged(version, before) {
  showEffects();
  if (before === null) offerAgain();
  else showNotice(version > before ? `Version ${version} is live.` : `Back on version ${version}.`);
}

const shownAnswer = () => conversation.last?.answers[conversation.last.shown] ?? null;

/** Whether the last answer is from another version than would answer now. */
function outdated() {
  const last = shownAnswer();
  const judged = last?.text && last.finish !== null && last.asked === null && !running;
  return Boolean(judged) && status.version !== null && last.version !== status.version;
}

/** After an answer that was begun before the version changed, or a reload. */
function offerAgain() {
  if (outdated()) showNotice(`Version ${status.version} is live.`);
}

function showNotice(text) {
  // Before anything was said there is nothing to put it under; the bar shows it.
  if (!conversation.last) return;
  following(() => {
    $("ask-again").hidden = !outdated();
    $("notice").hidden = false;
    say($("notice-text"), text);
  });
}

function hideNotice() {
  $("notice").hidden = true;
  say($("notice-text"), "");
}

$("ask-again").addEventListener("click", () => {
  again(conversation.last, { beside: true });
  prompt.focus();
});

/* side by side */

const sideBySide = () => $("side-by-side").getAttribute("aria-pressed") === "true";

function chosenVersions() {
  const values = [$("version-a"), $("version-b")].map(({ value }) =>
    value === "" ? null : Number(value),
  );
  // The live version by its number is the live version: one request, two samples.
  return new Set(values.map((value) => value ?? status.version)).size === 1
    ? [values[0], values[0]]
    : values;
}

function fillVersions() {
  const loaded = [...status.loaded].sort((one, other) => other - one);
  for (const select of [$("version-a"), $("version-b")]) {
    const { value } = select;
    const options = loaded.map((version) => el("option", { value: version }, `version ${version}`));
    select.replaceChildren(el("option", { value: "" }, "the live version"), ...options);
    select.value = loaded.includes(Number(value)) ? value : "";
  }
}

$("side-by-side").addEventListener("click", () => {
  const on = !sideBySide();
  $("side-by-side").setAttribute("aria-pressed", String(on));
  $("versions").hidden = !on;
  prompt.focus();
});

/* composer */

function setRunning(controller) {
  running = controller;
  // Hiding the button in focus would drop the keyboard's place.
  const focused = document.activeElement;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
  if (focused === $("send") || focused === $("stop")) prompt.focus();
  refresh();
}

function refresh() {
  $("send").disabled = !prompt.value.trim();
  if (!CSS.supports("field-sizing", "content")) {
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight}px`;
  }
}

function submit() {
  const text = prompt.value.trim();
  if (!text || running) return;
  prompt.value = "";
  refresh();
  ask(text);
}

function startOver() {
  leave();
  running?.abort();
  conversation.clear();
  views.clear();
  log.replaceChildren();
  hideNotice();
  drawTurns();
  prompt.focus();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("input", refresh);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) running.abort();
  else if (event.target === prompt) lastView()?.visible[0]?.node.focus();
});
$("stop").addEventListener("click", () => running?.abort());
$("starters").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && !running) ask(button.textContent);
});
addEventListener("pagehide", () => {
  leave();
  conversation.save();
});
$("signals").checked = signalsAreOn();
$("signals").addEventListener("change", ({ target }) => switchSignals(target.checked));

/* keys */

/** Acts on the answer in focus, else on the last one. */
function onAnswer(act) {
  return () => {
    const focused = document.activeElement.closest?.(".answer");
    const all = [...views.values()].flatMap((view) => view.visible);
    const view = all.find((one) => one.node === focused) ?? lastView()?.visible[0];
    if (view?.finished && view.answer.completionId) act(view);
  };
}

const pick = (side) => () => {
  const view = lastView();
  if (view?.turn.pair) view.pick(side === "tie" ? side : view.turn.pair[side]);
};

const newChat = el(
  "button",
  {
    type: "button",
    class: "quiet",
    id: "new-chat",
    "aria-label": "New chat",
    hidden: true,
    onclick: startOver,
  },
  icon("plus"),
  el("span", { class: "wide-only" }, "New chat"),
);

openShell({
  extras: [status.node, newChat],
  shortcuts: [
    ["Enter", "Send the message"],
    ["Shift Enter", "Start a new line"],
    ["Escape", "Stop the answer, or go from the message to the last answer"],
    ["/", "Go to the message", () => prompt.focus()],
    [
      "u",
      "Thumbs up for the focused answer, or for the last one",
      onAnswer((view) => view.press("up")),
    ],
    ["d", "Thumbs down", onAnswer((view) => view.press("down"))],
    ["e", "Write a better answer", onAnswer((view) => view.openEdit())],
    ["c", "Comment", onAnswer((view) => view.openComment())],
    ["r", "Ask again", () => conversation.last && regenerate(conversation.last)],
    ["a", "Side by side: A is better", pick("left")],
    ["b", "Side by side: B is better", pick("right")],
    ["t", "Side by side: a tie", pick("tie")],
    ["n", "New chat", startOver],
  ],
});

conversation.load();
drawTurns();
refresh();
toBottom();
status.start();
