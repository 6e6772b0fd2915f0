// The strip in the bar: which version answers, what the learner does, how many thumbs wait.

import { call } from "./api.js";
import { el, say } from "./dom.js";
import { plural } from "./format.js";
import { listen } from "./live.js";

const POLL = 5000;

export const WORDS = {
  waiting: "ready to learn",
  stepping: "learning",
  publishing: "publishing a version",
  paused: "learning is paused",
};

/** Calls `onVersion(version, before)` when another version begins to answer; null at first. */
export class Status {
  constructor({ onVersion, onLoaded = () => {} }) {
    this.onVersion = onVersion;
    this.onLoaded = onLoaded;
    this.policy = "tuneloop";
    this.version = null;
    this.loaded = [];
    /** null where the learner did not say. */
    this.learnsFromComments = null;
    this.badge = el("span", { class: "badge" }, "–");
    this.learner = el(
      "span",
      { class: "learner", "data-state": "unknown" },
      el("span", { class: "dot", "aria-hidden": "true" }),
      el("span", {}, "connecting"),
    );
    this.thumbs = el("span", { class: "wide-only" });
    this.node = el(
      "div",
      { class: "status", role: "group", "aria-label": "Status" },
      this.badge,
      this.learner,
      this.thumbs,
    );
  }

  start() {
    listen({
      policies: (document) => this.takePolicies(document),
      learner: (status) => this.takeLearner(status),
      state: (state, error) => this.takeState(state, error),
    });
  }

  takePolicies(document) {
    if (!document || document.policy_version === null) {
      say(this.badge, "starting");
      return;
    }
    this.policy = document.policy;
    const loaded = document.serving.loaded_versions;
    if (String(loaded) !== String(this.loaded)) {
      this.loaded = loaded;
      this.onLoaded();
    }
    this.see(document.policy_version);
  }

  /** A version was seen serving, here or in an answer. */
  see(version) {
    say(this.badge, `version ${version}`);
    if (version === this.version) return;
    const before = this.version;
    this.version = version;
    this.onVersion(version, before);
  }

  takeLearner(status) {
    this.learnsFromComments = status?.learns_from_comments ?? this.learnsFromComments;
    this.learner.dataset.state = status ? status.state : "away";
    say(this.learner.lastChild, status ? (WORDS[status.state] ?? status.state) : "learner is down");
    const kto = status?.samples.find((sample) => sample.objective === "kto");
    say(this.thumbs, kto ? `${plural(kto.ready + kto.waiting, "thumb")} waiting` : "");
  }

  takeState(state, error) {
    if (state === "live") return;
    if (state === "away") {
      say(this.badge, "offline");
      this.learner.dataset.state = "away";
      say(this.learner.lastChild, "service unreachable");
      return;
    }
    // A key that may only chat: which version answers can be asked without one.
    this.learner.hidden = true;
    if (error.status !== 401) this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    if (!document.hidden) {
      try {
        const ready = await (await call("/readyz")).json();
        this.policy = ready.policy;
        this.see(ready.policy_version);
      } catch {
        say(this.badge, "offline");
      }
    }
    this.timer = setTimeout(() => this.poll(), POLL);
  }
}
