// The feedback browser: filter, read, take back, export.

import { call, getJson, retractFeedback } from "./api.js";
import { $, announce, el, icon, say } from "./dom.js";
import { headline, kindIcon, question } from "./feedback-text.js";
import { ago, count, moment } from "./format.js";
import { markdown } from "./markdown.js";
import { askForKey, confirmAction, openShell } from "./shell.js";

const PAGE = 50;
const TYPING = 350;
const filters = $("filters");

let next = null;
let shown = 0;
/** Answers to an earlier filter that come late are not shown. */
let turn = 0;

openShell({ shortcuts: [["/", "Go to the filters", () => filters.elements.kind.focus()]] });

/* filter */

/** The filter stands in the address, so that it can be kept and sent on. */
function readAddress() {
  for (const [name, value] of new URLSearchParams(location.search)) {
    if (filters.elements[name]) filters.elements[name].value = value;
  }
}

function wanted() {
  const chosen = new URLSearchParams();
  for (const [name, value] of new FormData(filters))
    if (value.trim()) chosen.set(name, value.trim());
  return chosen;
}

/** As the service names it: `#…` is the hash that the list shows, anything else a user's name. */
function asQuery(chosen) {
  const query = new URLSearchParams(chosen);
  const user = query.get("user");
  if (user?.startsWith("#")) {
    query.delete("user");
    query.set("user_hash", user.slice(1));
  }
  return query;
}

function filterChanged() {
  // Only thumbs are up or down.
  const { kind, value } = filters.elements;
  value.disabled = kind.value !== "" && kind.value !== "thumb";
  if (value.disabled) value.value = "";
  const chosen = wanted();
  history.replaceState(null, "", chosen.size ? `?${chosen}` : location.pathname);
  load();
}

let typing = null;
filters.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(filterChanged, event.target.matches("select") ? 0 : TYPING);
});
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(filterChanged));
document.addEventListener("tuneloop:key-changed", () => load());
$("more").addEventListener("click", () => load(next));

/* the list */

async function load(before = null) {
  turn += 1;
  const mine = turn;
  const query = asQuery(wanted());
  query.set("limit", PAGE);
  if (before) query.set("before", before);
  $("more").disabled = true;
  try {
    const page = await getJson(`/v1/feedback?${query}`);
    if (mine !== turn) return;
    const items = page.data.map(itemNode);
    if (before) $("items").append(...items);
    else $("items").replaceChildren(...items);
    if (before) items[0]?.querySelector("summary").focus();
    shown = before ? shown + items.length : items.length;
    next = page.next;
    showCount();
    $("problem").hidden = true;
  } catch (error) {
    if (mine === turn) fail(error, before);
  }
  $("more").disabled = false;
}

function showCount() {
  $("more").hidden = !next;
  if (shown) say($("found"), next ? `The latest ${count(shown)}` : `${count(shown)} found`);
  else say($("found"), wanted().size ? "Nothing matches" : "No feedback yet");
}

function fail(error, before) {
  if (error.status === 403)
    askForKey("This page needs a key with the admin scope. The key stays in this tab.");
  const again = el(
    "button",
    { type: "button", class: "quiet", onclick: () => load(before) },
    "Try again",
  );
  $("problem").replaceChildren(error.message, again);
  $("problem").hidden = false;
  say($("found"), shown ? `The latest ${count(shown)}` : "Nothing to show");
}

function itemNode(item) {
  const body = el("div", { class: "body" });
  const badge = el(
    "span",
    { class: "badge", "data-state": item.status, hidden: item.status === "accepted" },
    item.status,
  );
  const details = el(
    "details",
    { class: "item" },
    el(
      "summary",
      { "data-value": item.kind === "thumb" ? item.value : null },
      kindIcon(item),
      el("span", { class: "what" }, el("strong", {}, headline(item)), badge),
      el("span", { class: "clip" }, question(item)),
      el(
        "span",
        { class: "note", title: moment(item.accepted_time) },
        `${item.policy_version === null ? "" : `version ${item.policy_version} · `}${ago(item.accepted_time)}`,
      ),
    ),
    body,
  );
  // Built when it is opened: a page holds many.
  details.addEventListener("toggle", () => {
    if (details.open && !body.childElementCount) body.append(...parts(item, badge));
  });
  return el("li", {}, details);
}

/* one item */

function parts(item, badge) {
  return [
    ...promptParts(item.prompt),
    ...completionParts(item),
    ...judgementParts(item),
    el("dl", { class: "facts" }, ...facts(item)),
    actions(item, badge),
  ];
}

function promptParts(prompt) {
  if (!prompt) return [block("Prompt", "The answer is not in the ledger yet.", "unknown")];
  if (typeof prompt === "string") return [block("Prompt", prompt)];
  return prompt.map((message) => block(message.role, message.content, message.role));
}

function completionParts(item) {
  const several = item.completions?.length > 1 ? item.completions : null;
  if (!several) return item.completion ? [written("Answer", item.completion, "answer")] : [];
  return several.map((completion, index) => {
    const best =
      item.kind === "comparison"
        ? completion.completion_id === item.chosen
        : index === 0 || item.session_id;
    const place = placeOf(item, index, best);
    const version =
      completion.policy_version === null ? "" : `, version ${completion.policy_version}`;
    return written(
      place + version,
      completion.text ?? "Not known yet.",
      best ? "answer chosen" : "answer rejected",
    );
  });
}

function placeOf(item, index, best) {
  if (item.session_id) return `Turn ${index + 1}`;
  if (item.kind === "ranking") return `Rank ${index + 1}`;
  return best ? "Chosen" : "Rejected";
}

function judgementParts(item) {
  if (!item.text) return [];
  return item.kind === "demonstration"
    ? [written("Better answer", item.text, "answer chosen")]
    : [block("Comment", item.text, "comment")];
}

const block = (title, text, kind = "") =>
  el("section", { class: `block ${kind}` }, el("h3", {}, title), el("p", {}, text));
const written = (title, text, kind) =>
  el("section", { class: `block ${kind}` }, el("h3", {}, title), markdown(text, 4));

function facts(item) {
  const used = item.used_by_versions ?? [];
  return [
    ["Used by", used.length ? `version ${used.join(", ")}` : "no version yet"],
    ["User", item.user_hash],
    ["Date", moment(item.accepted_time)],
    ["Feedback ID", item.id],
    item.session_id ? ["Session ID", item.session_id] : ["Completion ID", item.completion_id],
    ...Object.entries({ ...item.tags, ...item.metadata }),
  ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

function actions(item, badge) {
  const sameUser = el(
    "button",
    { type: "button", class: "quiet", onclick: () => onlyUser(item.user_hash) },
    "Only this user",
  );
  const retract = el(
    "button",
    { type: "button", class: "quiet danger", hidden: item.status !== "accepted" },
    "Retract",
  );
  retract.addEventListener("click", async () => {
    const done = await confirmAction({
      title: "Retract this feedback?",
      text: "No new version learns from it. Versions that already did keep what they learned. It stays in the list as retracted.",
      action: "Retract",
      run: () => retractFeedback(item.id),
    });
    if (!done) return;
    item.status = "retracted";
    say(badge, "retracted");
    badge.dataset.state = "retracted";
    badge.hidden = false;
    retract.hidden = true;
    announce("Retracted.");
    retract.closest("details").querySelector("summary").focus();
  });
  return el("div", { class: "actions" }, sameUser, retract);
}

function onlyUser(hash) {
  filters.elements.user.value = `#${hash}`;
  filterChanged();
  filters.elements.user.focus();
}

/* export */

$("export").addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-kind]");
  if (!button) return;
  const { kind } = button.dataset;
  button.disabled = true;
  say($("export-note"), "Exporting…");
  try {
    // Through fetch, as a link cannot carry a key.
    const blob = await (await call(`/v1/export?kind=${kind}&format=jsonl`)).blob();
    const url = URL.createObjectURL(blob);
    el("a", { href: url, download: `${kind}.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    say(
      $("export-note"),
      blob.size
        ? `${kind}.jsonl: ${size(blob.size)}.`
        : "There is nothing of this kind yet, so the file is empty.",
    );
  } catch (error) {
    say($("export-note"), `Export failed: ${error.message}`);
  }
  button.disabled = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !$("export").open) return;
  $("export").open = false;
  $("export").querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("#export, dialog")) $("export").open = false;
});
$("export").querySelector("summary").prepend(icon("download"));

function size(bytes) {
  const kilobytes = bytes / 1024;
  return kilobytes < 1000
    ? `${Math.max(1, Math.round(kilobytes))} kB`
    : `${(kilobytes / 1024).toFixed(1)} MB`;
}

readAddress();
filterChanged();
