// One answer on the page: its text, which version wrote it, and what can be said of it.

import { retractFeedback, sendFeedback } from "./api.js";
import { announce, el, icon, iconButton, say } from "./dom.js";
import { whatChanged } from "./effects.js";
import { MarkdownView, markdown } from "./markdown.js";
import { SavedChoice } from "./saving.js";
import { sendSignal, shareChanged } from "./signals.js";
import { ThoughtView } from "./thought.js";
import { writingForm } from "./writing.js";

const ENDINGS = {
  length: "Stopped at the length limit.",
  abort: "Stopped.",
  cut: "Cut off when you left the page.",
};

/** What becomes of a comment, by whether the model learns from comments; null: that is not known. */
const FATES = new Map([
  [true, "The next version learns from it."],
  [false, "It is stored for people to read, not learned from."],
  [null, "It is stored."],
]);

/**
 * Shows `answer` and keeps showing it as `update` is called. `actions` are the conversation's:
 * `changed()`, `following(change)`, `retry()`, `learnsFromComments()`, and `regenerate()` where the
 * answer is the last.
 */
export class AnswerView {
  constructor(answer, actions) {
    this.answer = answer;
    this.actions = actions;
    this.choices = {};
    /** Stands in the place of the version while that is not to be known. */
    this.alias = null;
    this.drawing = false;
    this.thought = new ThoughtView();
    this.view = new MarkdownView();
    this.text = this.view.node;
    this.extra = el("div", { class: "extra" });
    this.note = el("span", { class: "note", role: "status" });
    this.badge = el("span", { class: "badge" });
    this.tools = el("div", { class: "tools", role: "group", "aria-label": "Rate this answer" });
    this.meta = el("footer", { class: "meta", hidden: true }, this.badge, this.tools, this.note);
    this.node = el(
      "article",
      { class: "answer", "aria-label": "Answer", tabindex: -1 },
      this.thought.node,
      this.text,
      this.extra,
      this.meta,
    );
    this.text.addEventListener("copy", () => sendSignal("copied", this.answer.completionId));
    this.buildTools();
    this.update();
  }

  buildTools() {
    const thumb = (value, label) =>
      iconButton(value, label, () => this.press(value), {
        "aria-pressed": "false",
        "data-value": value,
      });
    this.thumbs = [thumb("up", "Good answer"), thumb("down", "Bad answer")];
    this.regenerate = iconButton("loop", "Ask again", () => this.actions.regenerate());
    this.tools.append(
      ...this.thumbs,
      iconButton("pencil", "Write a better answer", () => this.openEdit()),
      iconButton("comment", "Comment", () => this.openComment()),
      iconButton("copy", "Copy", () => this.copy()),
      this.regenerate,
    );
  }

  get finished() {
    return this.answer.finish !== null || this.answer.failure !== null;
  }

  /** At most once a frame: a fast model sends more chunks than anybody can read. */
  update() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.actions.following(() => this.draw());
    });
  }

  draw() {
    const { answer } = this;
    this.node.setAttribute("aria-busy", String(!this.finished));
    this.thought.show(answer, this.finished);
    if (!this.editor) this.view.show(answer.edit?.text ?? answer.text);
    this.node.classList.toggle("edited", Boolean(answer.edit));
    if (!this.finished) return;
    const judged = Boolean(answer.completionId && answer.text);
    this.meta.hidden = false;
    this.badge.hidden = answer.version === null;
    this.tools.hidden = !judged;
    this.regenerate.hidden = !this.actions.regenerate;
    this.showVersion();
    for (const button of this.thumbs) {
      button.setAttribute("aria-pressed", String(button.dataset.value === answer.thumb.value));
    }
    if (!this.editor && !this.commenting) this.drawExtra();
    if (answer.failure) return;
    if (!answer.text)
      this.tell(
        answer.finish === "abort"
          ? "Stopped before the first word."
          : answer.reasoning && answer.finish === "length"
            ? "Stopped at the length limit while it was thinking."
            : "The model gave an empty answer.",
      );
    else if (this.note.textContent) return;
    else if (answer.learned && answer.learned.id === this.given) this.tell(answer.learned.words);
    else if (ENDINGS[answer.finish]) this.tell(ENDINGS[answer.finish]);
  }

  showVersion() {
    const { version, spans } = this.answer;
    const several = spans && new Set(spans).size > 1;
    say(
      this.badge,
      this.alias
        ? this.alias
        : several
          ? `versions ${spans[0]} to ${spans.at(-1)}`
          : `version ${version}`,
    );
    this.badge.title = several ? "New weights went live while this was being written" : "";
  }

  drawExtra() {
    const parts = [];
    const { answer } = this;
    if (answer.failure) parts.push(this.failureLine(answer.failure));
    if (answer.edit) {
      const summary = el("summary", {}, "What the model wrote");
      const original = el("details", {}, summary, markdown(answer.text));
      parts.push(
        el(
          "p",
          { class: "said" },
          icon("pencil"),
          "Your better answer. ",
          this.undo("Take it back", () => this.takeBack("edit")),
        ),
        original,
      );
    }
    if (answer.comment) {
      parts.push(
        el(
          "p",
          { class: "said" },
          icon("comment"),
          `“${answer.comment.text}” `,
          answer.comment.learned && el("span", {}, answer.comment.learned),
          this.undo("Take it back", () => this.takeBack("comment")),
        ),
      );
    }
    this.extra.replaceChildren(...parts);
  }

  undo(label, onclick) {
    return el("button", { type: "button", class: "link", onclick }, label);
  }

  failureLine(message) {
    const again = el(
      "button",
      { type: "button", class: "quiet", onclick: () => this.actions.retry() },
      "Try again",
    );
    return el("p", { class: "failure", role: "alert" }, message, again);
  }

  tell(text) {
    this.actions.following(() => say(this.note, text));
  }

  /* thumbs */

  /** The same thumb again takes it back. */
  async press(value) {
    const { thumb } = this.answer;
    const before = thumb.value;
    const wanted = before === value ? null : value;
    thumb.value = wanted;
    this.draw();
    await this.store("thumb", {
      done:
        wanted === null
          ? "Taken back."
          : before === null
            ? "Thanks. The next version learns from it."
            : "Changed.",
      run: async (patience) => {
        if (wanted !== null) {
          thumb.ids.push(await sendFeedback(this.feedback({ kind: "thumb", value }), patience));
          return;
        }
        // All of them: else the one before the last would hold again.
        for (const id of thumb.ids) await retractFeedback(id, patience);
        thumb.ids = [];
      },
      failed: () => {
        thumb.value = before;
      },
    });
  }

  /* a better answer, a comment */

  openEdit() {
    const { answer } = this;
    const box = { "aria-label": "The answer as it should have been", maxlength: 30_000 };
    const editor = writingForm(box, {
      value: answer.edit?.text ?? answer.text,
      button: "Save the better answer",
      send: (text) =>
        this.saveText(
          "edit",
          { kind: "demonstration", text },
          "Thanks. The next version learns to answer like that.",
        ),
      cancel: () => this.closeForms(),
    });
    (this.editor ?? this.text).replaceWith(editor);
    this.editor = editor;
    editor.elements[0].focus();
  }

  openComment() {
    const fate = FATES.get(this.actions.learnsFromComments());
    const box = {
      "aria-label": "Your comment",
      maxlength: 4000,
      rows: 2,
      placeholder: `What is good or bad about it? ${fate}`,
    };
    this.commenting = writingForm(box, {
      button: "Send comment",
      enterSends: true,
      send: (text) => this.saveText("comment", { kind: "comment", text }, `Thanks. ${fate}`),
      cancel: () => this.closeForms(),
    });
    this.extra.replaceChildren(this.commenting);
    this.actions.following(() => this.commenting.elements[0].focus());
  }

  closeForms() {
    this.editor?.replaceWith(this.text);
    this.editor = null;
    this.commenting = null;
    this.draw();
    this.node.focus();
  }

  async saveText(name, body, done) {
    const { answer } = this;
    const before = answer[name];
    if (name === "edit" && body.text === (before?.text ?? answer.text).trim()) {
      this.closeForms();
      this.tell("Nothing changed.");
      return;
    }
    answer[name] = { text: body.text, id: null };
    this.closeForms();
    if (name === "edit") {
      const distance = shareChanged(answer.text, body.text);
      sendSignal("edited", answer.completionId, { distance });
    }
    await this.store(name, {
      done,
      run: async (patience) => {
        const id = await sendFeedback(this.feedback(body), patience);
        answer[name].id = id;
        // The new one stands for the old one.
        if (before?.id) await retractFeedback(before.id, patience);
      },
      failed: () => {
        answer[name] = before;
      },
    });
  }

  async takeBack(name) {
    const { answer } = this;
    const before = answer[name];
    answer[name] = null;
    this.draw();
    this.node.focus();
    await this.store(name, {
      done: "Taken back.",
      run: async (patience) => before.id && retractFeedback(before.id, patience),
      failed: () => {
        answer[name] = before;
      },
    });
  }

  /** The feedback that stands: a better answer says more than a thumb. */
  get given() {
    return this.answer.edit?.id ?? this.answer.thumb.ids.at(-1) ?? null;
  }

  /** Tells what learning from the feedback changed, once a version has learned from it. */
  async showEffect() {
    try {
      await this.showEffectOfGiven();
      await this.showEffectOfComment();
    } catch {
      // The next version asks again.
    }
  }

  async showEffectOfGiven() {
    const { answer, given } = this;
    if (given === null || answer.learned?.id === given) return;
    const words = await whatChanged(given);
    if (words === null || given !== this.given) return;
    answer.learned = { id: given, words };
    this.tell(words);
    this.actions.changed();
  }

  /** Beside the comment, as a thumb has its own effect. */
  async showEffectOfComment() {
    const { comment } = this.answer;
    if (!comment?.id || comment.learned) return;
    const words = await whatChanged(comment.id);
    if (words === null || comment !== this.answer.comment) return;
    comment.learned = words;
    // Its thanks are out of date.
    this.tell("");
    this.actions.following(() => this.draw());
    announce(words);
    this.actions.changed();
  }

  feedback(body) {
    return { completion_id: this.answer.completionId, ...body };
  }

  /** Shows a choice at once and saves it; choices of one name follow one another. */
  store(name, choice) {
    this.choices[name] ??= new SavedChoice(
      (text) => this.tell(text),
      () => this.actions.changed(),
    );
    const failed = () => {
      choice.failed();
      this.draw();
    };
    return this.choices[name].save({ ...choice, failed });
  }

  async copy() {
    await navigator.clipboard.writeText(this.answer.edit?.text ?? this.answer.text);
    sendSignal("copied", this.answer.completionId);
    announce("Copied.");
    this.tell("Copied.");
  }
}
