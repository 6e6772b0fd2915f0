// The chat page: a conversation, a thumb on each answer, and a line when a new version is live.

import { sendThumb, setKey, streamChat } from "./api.js";
import { render } from "./render.js";
import { Status } from "./status.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const prompt = $("prompt");

let messages = [];
let running = null;

const status = new Status({ onVersion: announce, onKeyNeeded: askForKey });

/* conversation */

function fromTemplate(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

function append(node) {
  following(() => {
    $("empty").hidden = true;
    log.append(node);
  });
}

const scroller = document.scrollingElement;
const toBottom = () => scroller.scrollTo({ top: scroller.scrollHeight });

/** Changes the page; whoever was reading the end of it goes on seeing the end. */
function following(change) {
  const follow = scroller.scrollHeight - scroller.scrollTop - innerHeight < 120;
  change();
  if (follow) toBottom();
}

function say(note, text) {
  following(() => {
    note.textContent = text;
  });
}

function ask(text) {
  const question = fromTemplate("question-template");
  question.firstElementChild.textContent = text;
  append(question);
  messages.push({ role: "user", content: text });
  toBottom();
  return answer();
}

async function answer() {
  const node = fromTemplate("answer-template");
  append(node);
  const conversation = messages;
  const controller = new AbortController();
  setRunning(controller);
  const reply = { text: "", completionId: null, version: null };
  let failure = null;
  try {
    for await (const chunk of streamChat(status.policy, conversation, controller.signal)) {
      take(chunk, reply, node);
    }
  } catch (error) {
    if (!controller.signal.aborted) failure = error;
  }
  node.setAttribute("aria-busy", "false");
  draw(node, reply.text);
  if (reply.completionId) showMeta(node, reply);
  if (reply.version !== null) status.see(reply.version);
  if (running === controller) setRunning(null);
  if (conversation !== messages) return;
  if (failure) {
    fail(node, failure);
  } else if (reply.text) {
    messages.push({ role: "assistant", content: reply.text });
  } else {
    const stopped = controller.signal.aborted;
    leave(node, stopped ? "Stopped before the first word." : "The model had nothing to say.");
    messages.pop();
  }
}

function take(chunk, reply, node) {
  reply.version = chunk.policy_version;
  for (const choice of chunk.choices) {
    reply.completionId = choice.completion_id;
    reply.text += choice.delta.content ?? "";
  }
  // At most once a frame: a fast model sends more chunks than anybody can read.
  if (node.dataset.drawing) return;
  node.dataset.drawing = "yes";
  requestAnimationFrame(() => {
    delete node.dataset.drawing;
    draw(node, reply.text);
  });
}

function draw(node, text) {
  following(() => node.querySelector(".text").replaceChildren(render(text)));
}

/** An answer without a word: there is nothing to judge. */
function leave(node, text) {
  const note = node.querySelector(".note");
  node.querySelector(".meta").replaceChildren(note);
  node.querySelector(".meta").hidden = false;
  say(note, text);
}

function fail(node, error) {
  if (error.status === 401) askForKey();
  const line = document.createElement("p");
  line.className = "failure";
  line.setAttribute("role", "alert");
  line.append(error.message);
  const again = document.createElement("button");
  again.type = "button";
  again.className = "quiet";
  again.textContent = "Try again";
  again.addEventListener("click", () => {
    if (running) return;
    node.remove();
    answer();
  });
  line.append(again);
  following(() => node.querySelector(".text").after(line));
}

function announce(version, before) {
  const line = document.createElement("p");
  line.className = "live";
  line.textContent =
    version > before ? `Version ${version} is live` : `Back on version ${version}`;
  // Before anything was said there is nothing to put it under; the strip shows it.
  if (log.childElementCount) append(line);
}

/* thumbs */

function showMeta(node, reply) {
  const meta = node.querySelector(".meta");
  meta.querySelector(".badge").textContent = `version ${reply.version}`;
  following(() => {
    meta.hidden = false;
  });
  const vote = { value: null, turn: 0 };
  for (const button of meta.querySelectorAll(".thumb")) {
    button.addEventListener("click", () => press(meta, vote, button.dataset.value, reply));
  }
}

async function press(meta, vote, value, reply) {
  if (vote.value === value) return;
  const before = vote.value;
  const note = meta.querySelector(".note");
  const turn = (vote.turn += 1);
  setVote(meta, vote, value);
  note.textContent = "";
  try {
    await sendThumb(
      reply.completionId,
      value,
      () => {
        if (vote.turn === turn) say(note, "Cannot be stored just now; trying again…");
      },
      () => vote.turn === turn,
    );
    if (vote.turn !== turn) return;
    say(note, before === null ? "Thanks. The next version learns from it." : "Changed.");
    status.poll();
  } catch (error) {
    if (vote.turn !== turn) return;
    setVote(meta, vote, before);
    say(note, `Not stored: ${error.message}`);
    if (error.status === 401) askForKey();
  }
}

function setVote(meta, vote, value) {
  vote.value = value;
  for (const button of meta.querySelectorAll(".thumb")) {
    button.setAttribute("aria-pressed", String(button.dataset.value === value));
  }
}

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
  if (event.key === "Escape" && running) running.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", () => {
  running?.abort();
  messages = [];
  log.replaceChildren();
  $("empty").hidden = false;
  prompt.focus();
});
$("starters").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && !running) ask(button.textContent);
});

/* key */

function askForKey() {
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  $("key-dialog").close();
  status.poll();
});

refresh();
status.poll();
