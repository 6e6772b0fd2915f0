// What a model thought before it answered: open while it thinks, folded once the answer starts.

import { el, say } from "./dom.js";

export class ThoughtView {
  constructor() {
    this.summary = el("summary", {});
    this.body = el("p", {});
    this.node = el("details", { class: "thought", hidden: true }, this.summary, this.body);
    /** Whether the user opened or closed it, which counts from then on. */
    this.chosen = false;
    this.summary.addEventListener("click", () => {
      this.chosen = true;
    });
  }

  show(answer, finished) {
    // Conversations kept by earlier releases have none.
    const thought = answer.reasoning ?? "";
    this.node.hidden = !thought;
    if (!thought) return;
    const thinks = !finished && !answer.text;
    say(this.summary, thinks ? "Thinking …" : "What the model thought");
    say(this.body, thought);
    if (!this.chosen) this.node.open = thinks;
  }
}
