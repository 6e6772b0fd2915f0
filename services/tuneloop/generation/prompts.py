"""Turns prompts into token ids and token ids into text; knows the ids that end a completion."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.generation.tool_calls import openai_form
from tuneloop.models.control_tokens import Aside, ControlTokens
from tuneloop.models.thoughts import ThoughtDelimiters, thought_delimiters
from tuneloop.models.token_bytes import TokenTexts
from tuneloop.rollouts import ChatMessage, Prompt, Tool, ToolCall, ToolUse


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """A prompt in the form that the model gets."""

    text: str
    """Rendered template or plain prompt."""
    token_ids: tuple[int, ...]


class Tokenization:
    """A model folder's tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.stop_token_ids = stop_token_ids(folder, self.tokenizer.eos_token_id)

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """Tokenize a prompt. Raises `InvalidRequest` naming the field at fault."""
        if prompt.token_ids is not None:
            text = self.decode(prompt.token_ids, skip_special_tokens=False)
            return TokenizedPrompt(text=text, token_ids=prompt.token_ids)
        if prompt.text is not None:
            ids = self.tokenizer(prompt.text).input_ids
            return TokenizedPrompt(text=prompt.text, token_ids=tuple(ids))
        aside = self._control_tokens.aside()
        rendered = self._render(prompt.messages, prompt.tool_use, aside)
        # The template has already added the special tokens.
        ids = self._control_tokens.encode(rendered, aside)
        return TokenizedPrompt(text=aside.restore(rendered), token_ids=ids)

    @cached_property
    def thought_delimiters(self) -> ThoughtDelimiters | None:
        """What the model puts around its thoughts; None where it has no tokens for that."""
        return thought_delimiters(self.tokenizer)

    def thought_of(self, completion: Sequence[int], prompt: Sequence[int]) -> int:
        """Return how many of a completion's first tokens are its thought.

        Delimiters are counted, and white space before the answer.
        """
        delimiters = self.thought_delimiters
        count = 0 if delimiters is None else delimiters.thought_of(completion, prompt)
        while 0 < count < len(completion):
            if self.decode([completion[count]], skip_special_tokens=False).strip():
                break
            count += 1
        return count

    def thought_text(self, thought: Sequence[int]) -> str:
        """Return the words of a thought, without its delimiters."""
        delimiters = self.thought_delimiters
        if delimiters is None:
            return ""
        return self.decode(delimiters.between(thought), skip_special_tokens=False).strip()

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Tokenize a user's words, of which none becomes a control token."""
        aside = self._control_tokens.aside()
        return self._control_tokens.encode(aside.put(text), aside)

    def spells_control_tokens(self, text: str) -> bool:
        """Return whether control tokens of the model are spelled out in a text."""
        return bool(self._control_tokens.aside().put(text) != text)

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template shows tools to the model."""
        probe = Tool(name="a_function_to_look_for")
        try:
            asked = ChatMessage(role="user", content="?")
            aside = self._control_tokens.aside()
            return probe.name in self._render((asked,), ToolUse(tools=(probe,)), aside)
        except InvalidRequest:
            return False

    def _render(
        self, messages: Sequence[ChatMessage], tool_use: ToolUse | None, aside: Aside
    ) -> str:
        """Render a conversation with the model's chat template, ready for the next answer.

        What spells control tokens in it is put aside.
        """
        from jinja2.exceptions import TemplateError

        if not messages:
            raise InvalidRequest("messages: the conversation is empty", param="messages")
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                "messages: this model has no chat template; use /v1/completions with a prompt",
                param="messages",
            )
        tools = (
            [aside.put(openai_form(t, strict=False)) for t in tool_use.tools] if tool_use else None
        )
        turns = [
            aside.put(render_turn(message), keep_tags=message.role == "assistant")
            for message in messages
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        return str(rendered)

    @cached_property
    def token_texts(self) -> TokenTexts:
        """Single tokens, as log-probs show them."""
        return TokenTexts(self.tokenizer)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode token ids. Raises `InvalidRequest` for an id outside the vocabulary."""
        try:
            return str(
                self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
            )
        except (OverflowError, IndexError, ValueError) as error:
            raise InvalidRequest(
                f"prompt: token ids cannot be decoded: {error}", param="prompt"
            ) from error


def render_turn(message: ChatMessage) -> dict[str, Any]:
    """Return a turn as chat templates expect it, with the arguments of calls as objects."""
    rendered: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        rendered["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": parse_arguments(call)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    return rendered


def parse_arguments(call: ToolCall) -> Any:
    """Parse the arguments of a call. Raises `InvalidRequest` if they are not JSON."""
    try:
        return json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"messages: the arguments of the call of {call.name!r} are not JSON", param="messages"
        ) from error


def stop_token_ids(folder: Path, eos_token_id: int | None) -> frozenset[int]:
    """Return the ids that end a completion: the tokenizer's and `generation_config.json`'s."""
    ids = set() if eos_token_id is None else {int(eos_token_id)}
    path = folder / "generation_config.json"
    if path.exists():
        configured = json.loads(path.read_text()).get("eos_token_id")
        ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(i for i in ids if i is not None)
