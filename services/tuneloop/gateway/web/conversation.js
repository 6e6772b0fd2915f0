// The conversation: turns, each with one question and every answer it was given; kept in the
// browser over a reload.
//
// A turn has `question`, `answers`, `shown` (the answer that the conversation goes on with) and,
// where two answers stand side by side, `pair`: `{left, right, blind, pick, feedbackIds}`.

import { randomId } from "./dom.js";

const STORE = "tuneloop-conversation";

/** An answer to come; `asked` is the version that is to write it, null for the one that serves. */
export function newAnswer(asked = null) {
  return {
    key: randomId(),
    asked,
    text: "",
    completionId: null,
    version: null,
    spans: null,
    finish: null,
    failure: null,
    thumb: { value: null, ids: [] },
    edit: null,
    comment: null,
    learned: null,
  };
}

export class Conversation {
  constructor() {
    this.turns = [];
  }

  get last() {
    return this.turns.at(-1) ?? null;
  }

  add(question) {
    const turn = { key: randomId(), question, answers: [], shown: 0, pair: null };
    this.turns.push(turn);
    return turn;
  }

  /** What the model is told before it answers `turn`: the answers shown, as they were edited. */
  messagesBefore(turn) {
    const messages = [];
    for (const earlier of this.turns) {
      if (earlier === turn) break;
      const answer = earlier.answers[earlier.shown];
      const content = answer && (answer.edit?.text ?? answer.text);
      // A question that was never answered would put two turns of the user side by side.
      if (!content) continue;
      messages.push({ role: "user", content: earlier.question }, { role: "assistant", content });
    }
    return [...messages, { role: "user", content: turn.question }];
  }

  clear() {
    this.turns = [];
    this.save();
  }

  /** Keeps as much of the end as the browser lets us. */
  save() {
    for (let from = 0; from <= this.turns.length; from += 1) {
      try {
        localStorage.setItem(STORE, JSON.stringify(this.turns.slice(from)));
        return;
      } catch {
        // Full: without the oldest turn, then.
      }
    }
  }

  load() {
    try {
      const turns = JSON.parse(localStorage.getItem(STORE) ?? "[]");
      this.turns = turns.filter((turn) => typeof turn.question === "string");
    } catch {
      this.turns = [];
    }
    for (const answer of this.turns.flatMap((turn) => turn.answers)) {
      // Nothing is being written after a reload.
      if (answer.finish === null && !answer.failure) answer.finish = "cut";
    }
  }
}
