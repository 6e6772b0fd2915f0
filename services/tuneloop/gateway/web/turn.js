// A question and its answers: one of them with the others to leaf through, or two side by side.

import { AnswerView } from "./answer.js";
import { retractFeedback, sendFeedback } from "./api.js";
import { el, iconButton, say } from "./dom.js";
import { whatChanged } from "./effects.js";
import { SavedChoice } from "./saving.js";

/**
 * `actions` are the page's: `changed`, `following`, `retry(turn)`, `regenerate(turn)`,
 * `learnsFromComments`.
 */
export class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.views = new Map();
    this.isLast = true;
    this.choice = new SavedChoice(
      (text) => this.actions.following(() => say(this.verdict, text)),
      () => this.actions.changed(),
    );
    this.body = el("div", { class: "answers" });
    this.node = el(
      "div",
      { class: "turn" },
      el("article", { class: "question", "aria-label": "You" }, el("p", {}, turn.question)),
      this.body,
    );
    this.draw();
  }

  /** The views that are on the page. */
  get visible() {
    const { turn } = this;
    const shown = turn.pair && this.isLast ? [turn.pair.left, turn.pair.right] : [turn.shown];
    return shown
      .filter((index) => turn.answers[index])
      .map((index) => this.viewOf(turn.answers[index]));
  }

  viewOf(answer) {
    if (!this.views.has(answer.key)) {
      const actions = {
        changed: () => this.actions.changed(),
        following: (change) => this.actions.following(change),
        retry: () => this.actions.retry(this.turn),
        learnsFromComments: () => this.actions.learnsFromComments(),
        regenerate: null,
      };
      this.views.set(answer.key, new AnswerView(answer, actions));
    }
    return this.views.get(answer.key);
  }

  /** An answer has grown or ended. */
  update(answer) {
    this.viewOf(answer).update();
    if (answer.finish !== null || answer.failure) this.draw();
  }

  /** Tells what learning from the feedback on this turn changed. */
  async showEffects() {
    for (const answer of this.turn.answers) {
      if (answer.finish !== null) await this.viewOf(answer).showEffect();
    }
    await this.showEffectOfPick();
  }

  async showEffectOfPick() {
    const { pair } = this.turn;
    const given = pair?.feedbackIds.at(-1);
    if (!given || !this.verdict || pair.learned === given) return;
    const [chosen, rejected] = pair.pick === pair.left ? ["A", "B"] : ["B", "A"];
    try {
      const words = await whatChanged(given, { chosen, rejected });
      if (words === null || given !== pair.feedbackIds.at(-1)) return;
      pair.learned = given;
      say(this.verdict, words);
    } catch {
      // The next version asks again.
    }
  }

  /** Only the last turn can be answered again: what follows an answer was said to that answer. */
  setLast(isLast) {
    if (this.isLast === isLast) return;
    this.isLast = isLast;
    this.draw();
  }

  draw() {
    this.actions.following(() => {
      if (this.turn.pair && this.isLast) this.drawPair();
      else this.drawOne();
    });
  }

  drawOne() {
    const { turn } = this;
    this.body.classList.remove("pair");
    this.body.replaceChildren(...this.visible.map((view) => view.node));
    for (const view of this.visible) {
      view.actions.regenerate = this.isLast ? () => this.actions.regenerate(turn) : null;
      view.alias = null;
      view.node.classList.remove("picked");
      view.draw();
      this.leaf(view);
    }
  }

  /** ‹ 1 / 2 › where the question was answered more than once. */
  leaf(view) {
    view.pager?.remove();
    const { turn } = this;
    const all = turn.answers.length;
    if (all < 2) return;
    const go = (by) => {
      turn.shown = (turn.shown + by + all) % all;
      turn.pair = null;
      this.draw();
      this.visible[0].pager.querySelector(by < 0 ? "button" : "button:last-child").focus();
      this.actions.changed();
    };
    view.pager = el(
      "span",
      { class: "pager", role: "group", "aria-label": "Answers to this question" },
      iconButton("left", "Previous answer", () => go(-1)),
      el("span", {}, `${turn.shown + 1} / ${all}`),
      iconButton("right", "Next answer", () => go(1)),
    );
    view.tools.before(view.pager);
  }

  /* two side by side */

  drawPair() {
    const { turn } = this;
    const [left, right] = this.visible;
    const { pair } = turn;
    this.body.classList.add("pair");
    const ended = left.finished && right.finished;
    const fit =
      ended &&
      left.answer.text &&
      right.answer.text &&
      left.answer.completionId &&
      right.answer.completionId;
    for (const [view, name, index] of [
      [left, "Answer A", pair.left],
      [right, "Answer B", pair.right],
    ]) {
      view.pager?.remove();
      view.actions.regenerate = null;
      view.node.setAttribute("aria-label", name);
      // Which version it was would take the choice in advance.
      view.alias = pair.blind && pair.pick === null ? name : null;
      view.draw();
      view.node.classList.toggle("picked", pair.pick === index);
    }
    this.body.replaceChildren(left.node, right.node, ...(fit ? [this.choices(pair)] : []));
  }

  choices(pair) {
    const choose = (pick, label, text) =>
      el(
        "button",
        {
          type: "button",
          class: "quiet choose",
          "aria-pressed": String(pair.pick === pick),
          "aria-label": label,
          onclick: () => this.pick(pick),
        },
        text,
      );
    this.verdict ??= el("span", { class: "note", role: "status" });
    this.chooser = el(
      "div",
      { class: "choices", role: "group", "aria-label": "Which answer is better?" },
      el("span", { class: "ask" }, "Which is better?"),
      choose(pair.left, "Answer A is better", "A is better"),
      choose("tie", "A tie", "Tie"),
      choose(pair.right, "Answer B is better", "B is better"),
      this.verdict,
    );
    return this.chooser;
  }

  /** The one picked goes on the conversation. A tie says nothing to learn from, so none is sent. */
  pick(pick) {
    const { turn } = this;
    const { pair } = turn;
    if (!this.chooser || pair.pick === pick) return;
    const before = { pick: pair.pick, shown: turn.shown };
    pair.pick = pick;
    turn.shown = pick === "tie" ? pair.left : pick;
    this.draw();
    [...this.chooser.querySelectorAll("button")]
      .find((button) => button.getAttribute("aria-pressed") === "true")
      .focus();
    this.savePick(pick, before);
    this.actions.changed();
  }

  savePick(pick, before) {
    const { turn } = this;
    const { pair } = turn;
    this.choice.save({
      done:
        pick === "tie"
          ? "Both are kept. Nothing is learned from a tie."
          : "Thanks. The next version learns from it.",
      run: async (patience) => {
        if (pick === "tie") {
          // All of them: else the one before the last would hold again.
          for (const id of pair.feedbackIds) await retractFeedback(id, patience);
          pair.feedbackIds = [];
          return;
        }
        const other = pick === pair.left ? pair.right : pair.left;
        const chosen = turn.answers[pick].completionId;
        const rejected = [turn.answers[other].completionId];
        const comparison = { kind: "comparison", chosen, rejected };
        pair.feedbackIds.push(await sendFeedback(comparison, patience));
      },
      failed: () => {
        pair.pick = before.pick;
        turn.shown = before.shown;
        this.draw();
      },
    });
  }
}
