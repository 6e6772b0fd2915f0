// "Rate this conversation": a thumb on the session that all its turns share.

import { retractFeedback, sendFeedback } from "./api.js";
import { el, iconButton, say } from "./dom.js";
import { versionThatLearned } from "./effects.js";
import { SavedChoice } from "./saving.js";

/** A conversation of one turn is judged by the thumb under its answer. */
const FEWEST_TURNS = 2;

export class SessionRating {
  /** `actions` are the page's: `changed()` and `following(change)`. */
  constructor(node, conversation, actions) {
    this.node = node;
    this.conversation = conversation;
    this.actions = actions;
    this.thumbs = [
      ["up", "Good conversation"],
      ["down", "Bad conversation"],
    ].map(([value, label]) =>
      iconButton(value, label, () => this.press(value), {
        "aria-pressed": "false",
        "data-value": value,
      }),
    );
    this.note = el("span", { class: "note", role: "status" });
    const label = el("span", { id: "session-label" }, "Rate this conversation");
    const tools = { class: "tools", role: "group", "aria-labelledby": "session-label" };
    node.append(label, el("div", tools, ...this.thumbs), this.note);
    this.choice = new SavedChoice(
      (text) => actions.following(() => say(this.note, text)),
      () => this.drawAndKeep(),
    );
  }

  draw() {
    const { session, turns } = this.conversation;
    const answered = turns.filter((turn) => turn.answers.some((answer) => answer.completionId));
    this.node.hidden = answered.length < FEWEST_TURNS;
    if (!turns.length) say(this.note, "");
    for (const button of this.thumbs) {
      button.setAttribute("aria-pressed", String(button.dataset.value === session.value));
    }
  }

  drawAndKeep() {
    this.draw();
    this.actions.changed();
  }

  /** The same thumb again takes it back. */
  async press(value) {
    const { session } = this.conversation;
    const before = session.value;
    session.value = before === value ? null : value;
    const wanted = session.value;
    this.draw();
    await this.choice.save({
      done:
        wanted === null
          ? "Taken back."
          : "Thanks. The next version learns from the whole conversation.",
      run: async (patience) => {
        if (wanted !== null) {
          const body = { kind: "thumb", session_id: session.id, value };
          session.ids.push(await sendFeedback(body, patience));
          return;
        }
        // All of them: else the one before the last would hold again.
        for (const id of session.ids) await retractFeedback(id, patience);
        session.ids = [];
      },
      failed: () => {
        session.value = before;
      },
    });
  }

  /** Tells which version learned from it, once one has. */
  async showEffect() {
    const { session } = this.conversation;
    const given = session.ids.at(-1);
    if (!given || session.learned === given) return;
    try {
      const version = await versionThatLearned(given);
      if (version === null || given !== session.ids.at(-1)) return;
      session.learned = given;
      this.choice.tell(`Version ${version} learned from this conversation.`);
      this.actions.changed();
    } catch {
      // The next version asks again.
    }
  }
}
