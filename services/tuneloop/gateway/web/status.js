// The strip at the top: which version serves, what the learner does, how many thumbs wait.

import { getJson } from "./api.js";

const INTERVAL = 2000;
const WORDS = {
  waiting: "ready to learn",
  stepping: "learning",
  publishing: "publishing a version",
  paused: "learning is paused",
};

export class Status {
  constructor({ onVersion, onKeyNeeded }) {
    this.onVersion = onVersion;
    this.onKeyNeeded = onKeyNeeded;
    this.policy = "tuneloop";
    this.version = null;
    this.timer = null;
    document.addEventListener("visibilitychange", () => this.poll());
  }

  /** Ask now, and again while somebody looks. */
  async poll() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    await Promise.all([this.askVersion(), this.askLearner()]);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), INTERVAL);
  }

  async askVersion() {
    try {
      const answer = await getJson("/v1/policies?limit=1");
      this.policy = answer.policy;
      if (answer.policy_version !== null) this.see(answer.policy_version);
      else this.show("version", "starting");
    } catch (error) {
      if (error.status === 401) this.onKeyNeeded();
      else this.show("version", "offline");
    }
  }

  /** A version was seen serving, here or in an answer. */
  see(version) {
    this.show("version", `version ${version}`);
    if (version === this.version) return;
    if (this.version !== null) this.onVersion(version, this.version);
    this.version = version;
  }

  async askLearner() {
    try {
      const learner = await getJson("/v1/learner");
      document.getElementById("learner").dataset.state = learner.state;
      this.show("learner-text", WORDS[learner.state] ?? learner.state);
      this.show("thumbs", waiting(learner.samples));
    } catch (error) {
      document.getElementById("learner").dataset.state = "away";
      this.show("learner-text", error.status === 401 ? "needs a key" : "learner is away");
      this.show("thumbs", "");
    }
  }

  show(id, text) {
    const node = document.getElementById(id);
    if (node.textContent !== text) node.textContent = text;
  }
}

function waiting(samples) {
  const kto = samples.find((sample) => sample.objective === "kto");
  const count = kto ? kto.ready + kto.waiting : 0;
  return `${count} ${count === 1 ? "thumb" : "thumbs"} waiting`;
}
