"""Turns prompts into token ids and token ids into text; knows the ids that end a completion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneloop.errors import InvalidRequest
from tuneloop.generation.formats.answer import AnswerReader
from tuneloop.generation.formats.choice import choose_reasoning, own_reasoning_format
from tuneloop.generation.formats.detokenization import Detokenizer
from tuneloop.generation.formats.reasoning import ReasoningFormat
from tuneloop.generation.formats.tool_calls import openai_form
from tuneloop.models.control_tokens import Aside, ControlTokens
from tuneloop.models.token_bytes import TokenTexts
from tuneloop.rollouts import ChatMessage, FinishReason, Prompt, Tool, ToolCall, ToolUse

SET_HERE = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
)
"""Names of a chat template that no caller sets."""
SWITCHES = ("enable_thinking", "thinking")
"""What templates call the option that switches thoughts on and off."""
NEAREST_EFFORT = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""What models that know three efforts take in the place of others."""
NAMES_OF_THOUGHTS = ("reasoning", "thinking")
"""What some templates call the thought of an earlier turn in the place of `reasoning_content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """A prompt in the form that the model gets."""

    text: str
    """Rendered template or plain prompt."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCompletion:
    """A completion's thought and its answer."""

    reasoning_tokens: int = 0
    """How many of its first tokens are the thought; all where it was cut off before the answer."""
    reasoning: str = ""
    answer: str = ""


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
        options = self.options_for_template(prompt.template_options)
        rendered = self._render(prompt.messages, prompt.tool_use, aside, options)
        # The template has already added the special tokens.
        ids = self._control_tokens.encode(rendered, aside)
        return TokenizedPrompt(text=aside.restore(rendered), token_ids=ids)

    @cached_property
    def reasoning_format(self) -> ReasoningFormat | None:
        """How the model writes thoughts, as its template and tokens tell; None: it has none."""
        return own_reasoning_format(choose_reasoning(self.tokenizer))

    def read_completion(self, completion: Sequence[int], prompt: Sequence[int]) -> ReadCompletion:
        """Tell a completion's thought from its answer, as generation does where it streams."""
        if self.reasoning_format is None:
            return ReadCompletion(answer=self.decode(completion))
        rendered = self.decode(prompt, skip_special_tokens=False)
        hidden = self.hidden_tokens(self.reasoning_format.marks)
        reader = AnswerReader(
            Detokenizer(tokenizer=self.tokenizer, hidden=hidden),
            self.reasoning_format.parser(rendered),
            None,
            stop=(),
            stop_token_ids=self.stop_token_ids,
        )
        reading = reader.read(completion, FinishReason.STOP)
        return ReadCompletion(
            reasoning_tokens=reader.reasoning_tokens,
            reasoning=reading.reasoning,
            answer=reading.answer,
        )

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
            return probe.name in self._render((asked,), ToolUse(tools=(probe,)), aside, {})
        except InvalidRequest:
            return False

    @cached_property
    def option_names(self) -> frozenset[str]:
        """What a caller may set of what the chat template reads."""
        from transformers.utils import chat_template_utils

        template = self.tokenizer.chat_template
        if not isinstance(template, str):
            return frozenset()
        environment = chat_template_utils._compile_jinja_template(template).environment
        read = chat_template_utils._get_template_variables(template)
        ours = SET_HERE | environment.globals.keys() | self.tokenizer.special_tokens_map.keys()
        return frozenset(name for name in read - ours if not name.endswith("_token"))

    def options_for_template(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that this model's chat template takes for these options.

        `reasoning_effort` is left out where the template knows nothing of it; `none` is the switch
        of thoughts where there is one, and else the least effort. Raises `InvalidRequest` for any
        other name that the template does not read.
        """
        names, found = self.option_names, dict(options)
        switch = next((name for name in SWITCHES if name in names), "")
        if "enable_thinking" in found and switch:
            found[switch] = found.pop("enable_thinking")
        effort = found.pop("reasoning_effort", None)
        if effort is not None and switch:
            found.setdefault(switch, effort != "none")
        if effort is not None and "reasoning_effort" in names and (effort != "none" or not switch):
            found["reasoning_effort"] = NEAREST_EFFORT.get(effort, effort)
        unknown = sorted(found.keys() - names)
        if unknown == ["enable_thinking"]:
            raise InvalidRequest(
                "enable_thinking: this model's chat template has no switch for thoughts",
                param="enable_thinking",
            )
        if unknown:
            raise InvalidRequest(
                f"chat_template_kwargs: {unknown[0][:64]!r} is none that this model's chat "
                f"template reads; it reads {', '.join(sorted(names)) or 'none'}",
                param="chat_template_kwargs",
            )
        return found

    def hidden_tokens(self, shown: frozenset[str] | None) -> frozenset[int]:
        """Return the tokens that no text shows: special ones but those `shown`; None shows all.

        Those that end a completion are always hidden.
        """
        if shown is None:
            return self.stop_token_ids
        added = self.tokenizer.added_tokens_decoder.items()
        special = {i for i, token in added if token.special and token.content not in shown}
        return self.stop_token_ids | special

    def _render(
        self,
        messages: Sequence[ChatMessage],
        tool_use: ToolUse | None,
        aside: Aside,
        options: Mapping[str, Any],
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
        names = [name for name in NAMES_OF_THOUGHTS if self._names_thoughts(name)]
        turns = [
            aside.put(render_turn(message, names), keep_tags=message.role == "assistant")
            for message in messages
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                tokenize=False,
                add_generation_prompt=True,
                **aside.put(dict(options)),
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        return str(rendered)

    def _names_thoughts(self, name: str) -> bool:
        template = str(self.tokenizer.chat_template)
        return any(mark in template for mark in (f"message.{name}", f"message['{name}']"))

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


def render_turn(message: ChatMessage, names_of_thoughts: Sequence[str] = ()) -> dict[str, Any]:
    """Return a turn as chat templates expect it, with the arguments of calls as objects.

    Its thought is called `reasoning_content`, and by further names that the template knows.
    """
    rendered: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        names = ("reasoning_content", *names_of_thoughts)
        rendered |= dict.fromkeys(names, message.reasoning)
    if message.reasoning and message.content and message.tool_calls and names_of_thoughts:
        # gpt-oss's template takes one text beside calls.
        joined = f"{message.reasoning}\n\n{message.content}"
        rendered |= dict.fromkeys(names_of_thoughts, joined) | {"content": ""}
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
