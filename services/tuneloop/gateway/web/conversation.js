// The conversation: turns, each with one question and every answer it was given; kept in the
// browser over a reload.
//
// Its turns are one session of the service: `{id, value, ids, learned}`, with the thumb on all of
// it and the ids under which that was sent.
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
    /** What the model thought before it answered. */
    reasoning: "",
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

function newSession() {
  return { id: `page-${randomId()}`, value: null, ids: [], learned: null };
}

export class Conversation {
  constructor() {
    this.turns = [];
    this.session = newSession();
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
    this.session = newSession();
    this.save();
  }

  /** Keeps as much of the end as the browser lets us. */
  save() {
    for (let from = 0; from <= this.turns.length; from += 1) {
      try {
        const kept = { session: this.session, turns: this.turns.slice(from) };
        localStorage.setItem(STORE, JSON.stringify(kept));
        return;
      } catch {
        // Full: without the oldest turn, then.
      }
    }
  }

  load() {
    try {
      const kept = JSON.parse(localStorage.getItem(STORE) ?? "[]");
      // Earlier releases kept the turns alone.
      const turns = Array.isArray(kept) ? kept : kept.turns;
      this.turns = turns.filter((turn) => typeof turn.question === "string");
      if (typeof kept.session?.id === "string") this.session = kept.session;
    } catch {
      this.turns = [];
    }
    for (const answer of this.turns.flatMap((turn) => turn.answers)) {
      // Nothing is being written after a reload.
      if (answer.finish === null && !answer.failure) answer.finish = "cut";
    }
  }
}
