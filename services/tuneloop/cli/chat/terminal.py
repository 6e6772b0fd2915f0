"""The conversation on a real terminal: line editing, one-key thumbs, markdown."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.text import Text

from tuneloop.cli.output import printable

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from tuneloop.client import Choice, Receipt, Stream

THUMB_OF_KEY = {"+": "/up", "-": "/down"}
TALKING = "ask, or /help"
JUDGING = "ask more, or + good, - bad, /edit, /compare, /help"


class TerminalScreen:
    """A screen for people."""

    def __init__(
        self,
        commands: tuple[str, ...] = (),
        *,
        console: Console | None = None,
        given: "Input | None" = None,
        output: "Output | None" = None,
    ) -> None:
        self.console = console or Console(highlight=False)
        self.input = given
        self.output = output
        self.judging = False
        self.session: PromptSession[str] = PromptSession(
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            key_bindings=self.thumb_keys(),
            input=given,
            output=output,
        )

    def thumb_keys(self) -> KeyBindings:
        """Return key bindings: one key is a thumb, on an empty line after an answer."""
        bindings = KeyBindings()
        judging = Condition(lambda: self.judging and not get_app().current_buffer.text)
        for key in THUMB_OF_KEY:

            @bindings.add(key, filter=judging)
            def _(event: KeyPressEvent) -> None:
                event.app.exit(result=THUMB_OF_KEY[event.key_sequence[0].data])

        return bindings

    def read_line(self, *, judging: bool) -> str:
        """Read a line, with the usual editing keys and a history."""
        self.judging = judging
        hint = FormattedText([("fg:ansibrightblack", JUDGING if judging else TALKING)])
        return self.session.prompt("> ", placeholder=hint)

    def edit_text(self, text: str) -> str | None:
        """Let the user edit the text in several lines."""
        self.note("make it better; Alt-Enter (or Esc, Enter) sends it, Ctrl-C leaves it")
        editor: PromptSession[str] = PromptSession(input=self.input, output=self.output)
        try:
            better = editor.prompt("", default=text, multiline=True, enable_open_in_editor=True)
        except (KeyboardInterrupt, EOFError):
            return None
        return better if better.strip() and better != text else None

    def ask_choice(self, question: str, keys: Mapping[str, str]) -> str:
        """Read one key."""
        bindings = KeyBindings()

        @bindings.add("<any>")
        @bindings.add("enter")
        @bindings.add("c-c")
        def _(event: KeyPressEvent) -> None:
            pressed = event.key_sequence[0].data
            if pressed in keys:
                event.app.exit(result=pressed)
            elif event.key_sequence[0].key in ("c-c", "c-m"):
                event.app.exit(result=list(keys)[-1])

        meanings = ", ".join(f"{key} {name}" for key, name in keys.items())
        asking: PromptSession[str] = PromptSession(input=self.input, output=self.output)
        return asking.prompt(f"{question} {meanings} ", key_bindings=bindings)

    def show(self, stream: "Stream") -> None:
        """Show the text as it streams, as much as fits; then all of it as Markdown.

        A thought is dim, and stays above the answer.
        """
        text = thought = ""
        try:
            with Live(console=self.console, transient=True, refresh_per_second=12) as live:
                for piece in stream:
                    thought += printable(piece.reasoning)
                    text += printable(piece.text)
                    live.update(self.tail(text) if text else self.tail(thought, "dim"))
        finally:
            if thought:
                self.console.print(Text(thought, style="dim"))
            self.console.print(Markdown(text))

    def tail(self, text: str, style: str = "") -> Group:
        """Return the last lines, so that what is overwritten never scrolls away."""
        lines = Text(text, style=style).wrap(self.console, self.console.width)
        return Group(*lines[-max(1, self.console.height - 2) :])

    def show_both(self, first: "Choice[Receipt]", second: "Choice[Receipt]") -> None:
        """Show both side by side."""
        panels = [
            Panel(
                Markdown(printable(answer.text)),
                title=f"{number} · version {answer.policy_version}",
                width=max(20, self.console.width // 2 - 1),
            )
            for number, answer in enumerate((first, second), start=1)
        ]
        self.console.print(Columns(panels))

    def note(self, text: str) -> None:
        """Print a dim line."""
        self.console.print(Text(printable(text), style="dim"))
