"""A conversation on a screen: its turns and the feedback on them."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tuneloop.cli.output import effects_in_words
from tuneloop.errors import TuneloopError

if TYPE_CHECKING:
    from tuneloop.cli.chat.screens import Screen
    from tuneloop.client import ChatOptions, Choice, Client, Receipt

    Completion = Choice[Receipt]

HELP = """\
/up, +            the last answer is good
/down, -          the last answer is bad
/rate NUMBER      give it a number; larger is better
/edit [TEXT]      a better answer; without a text you edit the last one
/comment TEXT     comment on it
/compare [N]      a second answer, from version N if you name one: which is better?
/again            another answer to the same question
/undo             retract your last feedback
/new              start a new conversation
/quit             end"""
STORED = "Stored: the next version learns from it."
NOTHING = "There is no answer to judge yet."
TOLD = 8
"""Judgements whose effect is asked for at once, the newest."""


class Conversation:
    """The turns so far, the last answer, and the feedback that can be undone."""

    def __init__(self, client: "Client", options: "ChatOptions", screen: "Screen") -> None:
        self.client = client
        self.options = options
        self.screen = screen
        self.messages: list[Mapping[str, Any]] = []
        self.last: Completion | None = None
        self.version: int | None = None
        self.given: list[Receipt] = []
        self.told: set[str] = set()
        """Ids of feedback whose effect was told."""

    def run(self) -> None:
        """Read lines until the user quits."""
        while True:
            try:
                line = self.screen.read_line(judging=self.last is not None).strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/quit":
                return
            try:
                self.handle_line({"+": "/up", "-": "/down"}.get(line, line))
            except TuneloopError as error:
                self.screen.note(error.message)

    def handle_line(self, line: str) -> None:
        """Handle one line: a command or a question."""
        name, _, rest = line.partition(" ")
        if name.startswith("/"):
            commands.get(name, commands["/help"])(self, rest.strip())
        elif line:
            self.messages.append({"role": "user", "content": line})
            if not self.ask():
                self.messages.pop()

    def ask(self) -> bool:
        """Show the answer as it streams, and keep it; return False if there is none."""
        completion = self.stream_answer()
        if completion is None:
            return False
        if self.version is not None and completion.policy_version != self.version:
            self.screen.note(
                f"Version {completion.policy_version} answers now; it was {self.version}."
            )
            self.tell_effects()
        self.screen.note(f"version {completion.policy_version} · {completion.id}")
        self.version, self.last = completion.policy_version, completion
        self.messages.append(completion.message)
        return True

    def stream_answer(self) -> "Completion | None":
        """Stream the answer and return it, or its part if the user stops it or it fails."""
        with self.client.stream(self.messages, **self.options) as stream:
            try:
                self.screen.show(stream)
            except (KeyboardInterrupt, TuneloopError) as reason:
                stopped = isinstance(reason, KeyboardInterrupt)
                self.screen.note("stopped" if stopped else str(reason))
            try:
                return stream.completion
            except TuneloopError:  # there was no first piece
                return None

    def tell_effects(self) -> None:
        """Say what learning from the feedback changed, where a version has learned from it."""
        for receipt in [r for r in self.given if r.id not in self.told][-TOLD:]:
            words = effects_in_words(self.client.get_feedback(receipt).effects)
            if words:
                self.told.add(receipt.id)
                self.screen.note(words)

    def judge(self, feedback: Callable[["Completion"], "Receipt"], stored: str = STORED) -> None:
        """Give feedback on the last answer, and say that it is `stored`."""
        if self.last is None:
            self.screen.note(NOTHING)
            return
        self.given.append(feedback(self.last))
        self.screen.note(stored)

    def rate(self, number: str) -> None:
        """Handle `/rate 0.8`."""
        try:
            value = float(number)
        except ValueError:
            self.screen.note("/rate needs a number: /rate 0.8")
            return
        self.judge(lambda answer: answer.rate(value))

    def comment(self, text: str) -> None:
        """Handle `/comment too long`."""
        if not text:
            self.screen.note("/comment needs a text: /comment too long")
            return
        # Whether comments train is the learner's setting; what one changed is told as of a thumb.
        self.judge(lambda answer: answer.comment(text), "Stored.")

    def edit(self, text: str) -> None:
        """Give a better answer, with which the conversation continues."""
        if self.last is None:
            self.screen.note(NOTHING)
            return
        better = text or self.screen.edit_text(self.last.text)
        if better is None:
            self.screen.note("not changed")
            return
        self.judge(lambda answer: answer.edit(better))
        self.messages[-1] = {"role": "assistant", "content": better}

    def compare(self, version: str) -> None:
        """Show a second answer; the better one stays in the conversation."""
        if self.last is None:
            self.screen.note(NOTHING)
            return
        options = self.options.copy()
        if version:
            if not version.isdecimal():
                self.screen.note("/compare takes the number of a version: /compare 3")
                return
            options["policy_version"] = int(version)
        first = self.last
        second = self.client.chat(self.messages[:-1], **options)
        if second.text == first.text:
            self.screen.note("The second answer is the same: there is nothing to compare.")
            return
        self.screen.show_both(first, second)
        meanings = {"1": "the first", "2": "the second", "0": "neither"}
        chosen = self.screen.ask_choice("Which is better?", meanings)
        if chosen == "0":
            return
        better, worse = (first, second) if chosen == "1" else (second, first)
        self.judge(lambda _: self.client.compare(better, worse))
        self.last, self.messages[-1] = better, better.message

    def again(self) -> None:
        """Replace the last answer with another."""
        if self.last is None:
            self.screen.note("There is no question to ask again yet.")
            return
        kept = self.messages.pop()
        if not self.ask():
            self.messages.append(kept)

    def undo(self) -> None:
        """Retract the last feedback."""
        if not self.given:
            self.screen.note("There is no feedback to take back.")
            return
        self.client.retract(self.given[-1])
        self.given.pop()
        self.screen.note("Taken back.")

    def forget(self) -> None:
        """Start a new conversation."""
        self.messages.clear()
        self.last = None


commands: Mapping[str, Callable[[Conversation, str], None]] = {
    "/up": lambda talk, _: talk.judge(lambda answer: answer.thumb("up")),
    "/down": lambda talk, _: talk.judge(lambda answer: answer.thumb("down")),
    "/rate": Conversation.rate,
    "/edit": Conversation.edit,
    "/comment": Conversation.comment,
    "/compare": Conversation.compare,
    "/again": lambda talk, _: talk.again(),
    "/undo": lambda talk, _: talk.undo(),
    "/new": lambda talk, _: talk.forget(),
    "/help": lambda talk, _: talk.screen.note(HELP),
}
"""The commands that start with a slash; an unknown one shows the help."""
