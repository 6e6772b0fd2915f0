// The timeline of versions, with promote and roll back.

import { postJson } from "./api.js";
import { announce, el } from "./dom.js";
import { ago, moment, plural } from "./format.js";
import { confirmAction } from "./shell.js";
import { metricsInWords, thumbsInWords } from "./traffic.js";

const FIRST = 8;

export class Timeline {
  constructor() {
    this.list = el("ol", { class: "timeline" });
    this.more = el("button", {
      type: "button",
      class: "quiet",
      hidden: true,
      onclick: () => this.showAll(),
    });
    this.back = el(
      "button",
      { type: "button", class: "quiet", disabled: true, onclick: () => this.rollBack() },
      "Roll back",
    );
    this.node = el(
      "section",
      { class: "card versions", "aria-labelledby": "versions-title" },
      el("div", { class: "head" }, el("h2", { id: "versions-title" }, "Versions"), this.back),
      this.list,
      this.more,
    );
    this.all = false;
    this.opened = new Set();
    this.seen = "";
  }

  show(document) {
    this.document = document;
    const text = JSON.stringify(document);
    // Rebuilding the list would lose the keyboard's place.
    if (text === this.seen && this.list.childElementCount) return;
    this.seen = text;
    this.draw();
  }

  get serving() {
    return this.document?.policy_version ?? null;
  }

  get known() {
    return this.document?.data ?? [];
  }

  draw() {
    const focused = this.list.contains(document.activeElement)
      ? document.activeElement.dataset.version
      : null;
    // The one that answers is always among them.
    const shown = this.known.filter(
      ({ policy_version: number }, index) => this.all || index < FIRST || number === this.serving,
    );
    this.list.replaceChildren(...shown.map((version) => this.item(version)));
    if (!shown.length) {
      const text = this.document?.data
        ? "No versions yet. The first one follows the first steps."
        : "The learner is down. Versions appear when it is back.";
      this.list.append(el("li", { class: "nothing" }, text));
    }
    this.more.hidden = shown.length === this.known.length;
    this.more.textContent = `Show all ${this.known.length}`;
    this.back.disabled = this.target === null;
    if (focused) this.list.querySelector(`[data-version="${focused}"]`)?.focus();
  }

  showAll() {
    this.all = true;
    this.draw();
    this.list.children[FIRST]?.querySelector("button")?.focus();
  }

  item(version) {
    const number = version.policy_version;
    const serves = number === this.serving;
    const promote = serves
      ? null
      : el(
          "button",
          {
            type: "button",
            class: "quiet small",
            "data-version": number,
            "aria-label": `Promote version ${number}`,
            onclick: () => this.promote(number),
          },
          "Promote",
        );
    return el(
      "li",
      { class: serves ? "serves" : null, "data-number": number },
      el(
        "div",
        { class: "name" },
        el("strong", {}, `Version ${number}`),
        el("span", { class: "badge", "data-state": version.state }, version.state || "base"),
        serves ? el("span", { class: "note" }, "live") : null,
      ),
      el("p", { class: "note", title: moment(version.created_time) }, origin(version)),
      decided(version, this.opened),
      promote,
    );
  }

  promote(number) {
    return this.change({
      title: `Promote version ${number}?`,
      text: `New answers come from version ${number} at once${this.serving === null ? "" : `, instead of version ${this.serving}`}. You can switch back at any time.`,
      action: `Promote version ${number}`,
      run: () => postJson(`/v1/policies/${number}/promote`),
    });
  }

  /** Where a roll-back leads to: the last version that answered before and was not taken back. */
  get target() {
    if (!this.serving || !this.known.length) return null;
    const good = this.known.filter(
      (version) =>
        version.policy_version < this.serving &&
        ["retired", "stable"].includes(version.state) &&
        !passedOver(version),
    );
    return Math.max(0, ...good.map((version) => version.policy_version));
  }

  rollBack() {
    const { target } = this;
    return this.change({
      title: `Roll back to version ${target}?`,
      text: `Version ${target} answers again at once. Version ${this.serving} is quarantined: a new version learns from its data, and no newer version goes live until you promote one.`,
      action: `Roll back to version ${target}`,
      run: () => postJson("/v1/policies/rollback", { policy_version: target }),
    });
  }

  async change(question) {
    let answer = null;
    const run = async () => {
      answer = await question.run();
    };
    if (await confirmAction({ ...question, run }))
      announce(`Version ${answer.policy_version} is live.`);
  }
}

/** Whether it never answered, since a newer one came first or what it grew from was refused. */
const passedOver = (version) =>
  (version.decisions ?? []).some(
    ({ outcome }) => outcome === "superseded" || outcome === "retired",
  );

const OUTCOMES = {
  pass: "passed",
  fail: "failed",
  hold: "waiting",
  promote: "promoted it",
  roll_back: "rolled back to it",
  quarantined: "quarantined it",
  retired: "retired it",
  superseded: "skipped it",
  paused: "paused learning",
  resumed: "resumed learning",
};

/** What was decided about it, the last first; `opened` are the versions whose list is open. */
function decided(version, opened) {
  const decisions = [...(version.decisions ?? [])].reverse();
  if (!decisions.length) return null;
  const line = ({ kind, outcome, reason, actor, decided_time: time }) => {
    const who = actor === kind ? actor : `${actor}, ${kind}`;
    return el(
      "li",
      { title: moment(time) },
      el("strong", {}, `${who}: ${OUTCOMES[outcome] ?? outcome}`),
      reason ? ` – ${reason}` : "",
    );
  };
  const number = version.policy_version;
  const details = el(
    "details",
    { class: "decisions" },
    el("summary", { class: "note" }, plural(decisions.length, "decision")),
    el("ul", {}, ...decisions.map(line)),
  );
  // The list is rebuilt on each update; what was open stays open.
  details.open = opened.has(number);
  details.addEventListener("toggle", () =>
    details.open ? opened.add(number) : opened.delete(number),
  );
  return details;
}

/** What made it, and what users say of it. */
function origin(version) {
  const parts = [];
  const samples = Object.values(version.samples ?? {}).reduce((sum, one) => sum + one, 0);
  if (version.policy_version === 0) parts.push("the base model");
  if (version.created_time) parts.push(ago(version.created_time));
  if (version.algorithms?.length) parts.push(version.algorithms.join(" + "));
  if (samples) parts.push(plural(samples, "sample"));
  if (version.policy_version > 0) parts.push(`from version ${version.parent_version}`);
  parts.push(thumbsInWords(version.traffic), metricsInWords(version.traffic));
  return parts.filter(Boolean).join(" · ");
}
