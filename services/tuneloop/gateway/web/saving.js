// Saves one choice of a person after the other, and says how that goes.

/**
 * Requests follow one another, since the last one counts; they are tried again while the service
 * is down. A choice that was taken back before it was sent is not sent.
 */
export class SavedChoice {
  /** `tell(text)` shows how it goes; `changed()` is called after each choice. */
  constructor(tell, changed) {
    this.tell = tell;
    this.changed = changed;
    this.number = 0;
    this.tail = Promise.resolve();
  }

  /** `run(patience)` sends it, `failed()` puts back what was shown before. */
  save({ run, done, failed }) {
    this.number += 1;
    const { number } = this;
    const current = () => this.number === number;
    this.tell("");
    const patience = {
      onWait: () => current() && this.tell("Not saved yet. Trying again…"),
      stillWanted: current,
    };
    this.tail = this.tail.then(async () => {
      try {
        await run(patience);
        if (current()) this.tell(done);
      } catch (error) {
        if (current()) {
          failed();
          this.tell(`Not saved: ${error.message}`);
        }
      }
      this.changed();
    });
    return this.tail;
  }
}
