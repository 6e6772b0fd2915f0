"""Texts as token ids, exactly as the service would have seen and produced them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.errors import InvalidRequest
from tuneloop.generation.formats.choice import tags
from tuneloop.generation.formats.tool_calls import openai_form
from tuneloop.generation.prompts import Tokenization, render_turn
from tuneloop.learner.data.fields import Fields, Text
from tuneloop.learner.data.hints import hinted_prompt
from tuneloop.learner.samples import TokenSequence
from tuneloop.rollouts import ChatMessage, Prompt, Tool, ToolUse, prompt_as_text

WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the classes of models that write text are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """A prompt, as the model gets it and as a reader does."""

    text: str
    """What a reward function or a reward model reads."""
    messages: tuple[ChatMessage, ...]
    """Empty where the prompt is plain text."""
    rendered: str
    token_ids: tuple[int, ...]
    tools: tuple[Tool, ...] = ()
    """Functions that the model was shown."""


class TooLong(InvalidRequest):
    """A row that does not fit the model; `on_long` decides what becomes of it."""

    def __init__(self, row: Fields, what: str, limit: int) -> None:
        self.problem = f"{row.place}: {what}, more than the {limit} that fit"
        super().__init__(
            f"{self.problem}; shorten it, or leave such rows out with --set on_long=drop",
            param="max_length",
        )


class PromptTokenizer:
    """Makes prompts and sequences of rows."""

    def __init__(
        self, folder: Path, *, max_length: int | None, as_chat: bool | None = False
    ) -> None:
        """Take the tokenizer and the context length of the model in `folder`.

        `as_chat` says whether a text is a user's message; None: if the model has a chat template.
        Raises `InvalidRequest` for a model that writes no text.
        """
        model_length, self._vocabulary = size_of_model(folder)
        self.max_length = min(max_length or 1 << 30, model_length)
        self.tokenization = Tokenization(folder)
        has_template = bool(self.tokenization.tokenizer.chat_template)
        self._as_chat = has_template if as_chat is None else as_chat

    def asked(self, prompt: Text, row: Fields) -> PromptTokens:
        """Return a prompt of the row; raises `InvalidRequest` naming the row."""
        if isinstance(prompt, str) and self._as_chat:
            prompt = (ChatMessage(role="user", content=prompt),)
        tools: tuple[Tool, ...] = ()
        try:
            if isinstance(prompt, str):
                tokenized = self.tokenization.tokenize(Prompt(text=prompt))
                messages: tuple[ChatMessage, ...] = ()
            else:
                self._check_calls(prompt, row)
                tools = row["tools"].tools() if "tools" in row else ()
                use = ToolUse(tools=tools) if tools else None
                tokenized = self.tokenization.tokenize(Prompt(messages=prompt, tool_use=use))
                messages = prompt
        except InvalidRequest as error:
            problem = error.message.replace("; use /v1/completions with a prompt", "")
            raise row.wrong(problem) from error
        self._check_known(tokenized.token_ids, row)
        return PromptTokens(
            text=prompt_as_text(messages, tokenized.text),
            messages=messages,
            rendered=tokenized.text,
            token_ids=tokenized.token_ids,
            tools=tools,
        )

    def sequence(self, asked: PromptTokens, completion: Text, row: Fields) -> TokenSequence:
        """Return the prompt with one completion; raises `TooLong` where it does not fit."""
        if not isinstance(completion, str):
            self._check_calls(completion, row)
        ids = self._completion_ids(asked, completion)
        thought = self.tokenization.read_completion(ids, asked.token_ids).reasoning_tokens
        if thought == len(ids):
            # It ends nowhere: what a row gives is to be learned, whatever the prompt begins.
            thought = 0
        if not without_end(ids[thought:], self.tokenization.stop_token_ids):
            raise row.wrong("the completion is empty")
        self._check_known(ids, row)
        length = len(asked.token_ids) + len(ids)
        if length > self.max_length:
            raise TooLong(row, f"{length} tokens in prompt and completion", self.max_length)
        return TokenSequence(
            prompt_token_ids=asked.token_ids,
            completion_token_ids=ids,
            generation_logprobs=(),
            temperature=1.0,
            reasoning_tokens=thought,
        )

    def thought_text(self, sequence: TokenSequence) -> str:
        """Return the words of a completion's thought: none where a template wrote it empty."""
        if not sequence.reasoning_tokens:
            return ""
        read = self.tokenization.read_completion(
            sequence.completion_token_ids, sequence.prompt_token_ids
        )
        return read.reasoning

    def hinted(self, asked: PromptTokens, comment: str, row: Fields) -> tuple[int, ...]:
        """Return the prompt's token ids with a comment on its answer as a hint in it."""
        try:
            return hinted_prompt(self.tokenization, asked.token_ids, asked.messages, comment)
        except InvalidRequest as error:
            raise row.wrong(error.message) from error

    def whole_text(self, row: Fields) -> TokenSequence:
        """Return a row's `text`, which has no prompt: all but its first token is learned."""
        tokenizer = self.tokenization.tokenizer
        ids = [int(i) for i in tokenizer(row["text"].string()).input_ids]
        if tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
            ids.insert(0, int(tokenizer.bos_token_id))
        ids = self._ended(ids)
        if len(ids) < 2:
            raise row.wrong("text is a single token: nothing can be predicted")
        self._check_known(ids, row)
        if len(ids) > self.max_length:
            raise TooLong(row, f"{len(ids)} tokens", self.max_length)
        return TokenSequence(
            prompt_token_ids=tuple(ids[:1]),
            completion_token_ids=tuple(ids[1:]),
            generation_logprobs=(),
            temperature=1.0,
        )

    def _check_calls(self, messages: Sequence[ChatMessage], row: Fields) -> None:
        if self.tokenization.takes_tools:
            return
        calls = any(message.tool_calls or message.role == "tool" for message in messages)
        if calls or "tools" in row:
            raise row.wrong("has functions, for which the model's chat template has no place")

    def _check_known(self, token_ids: Sequence[int], row: Fields) -> None:
        """Raise `InvalidRequest` for a token that the model has no embedding of."""
        if max(token_ids, default=0) < self._vocabulary:
            return
        token = self.tokenization.decode([max(token_ids)], skip_special_tokens=False)
        raise row.wrong(
            f"the token {token!r} has the id {max(token_ids)}, and the model has embeddings of "
            f"{self._vocabulary}; resize them, or take the tokenizer that belongs to the model"
        )

    def _completion_ids(self, asked: PromptTokens, completion: Text) -> tuple[int, ...]:
        tokenizer = self.tokenization.tokenizer
        text = self._answer(asked, completion)
        ids = [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
        if asked.messages:
            # Templates write a line break after the end of a turn; no policy samples it.
            ends = [i for i, token in enumerate(ids) if token in self.tokenization.stop_token_ids]
            ids = ids[: ends[-1] + 1] if ends else ids
        return tuple(self._ended(ids))

    def _ended(self, ids: Sequence[int]) -> list[int]:
        """Return an answer with one token that ends it: its own last one, if it has any.

        What people collect often ends in it already, and in a line break after it.
        """
        stops, decode = self.tokenization.stop_token_ids, self.tokenization.decode
        end = self.tokenization.tokenizer.eos_token_id
        rest, own = list(ids), list[int]()
        for at in reversed([i for i, token in enumerate(ids) if token in stops]):
            if decode(rest[at + 1 :], skip_special_tokens=False).strip():
                break
            own = own or [rest[at]]
            rest = rest[:at]
        return [*rest, *(own or ([] if end is None else [int(end)]))]

    def _answer(self, asked: PromptTokens, completion: Text) -> str:
        """Return what follows the rendered prompt."""
        if isinstance(completion, str):
            if not asked.messages:
                return completion
            completion = (ChatMessage(role="assistant", content=completion),)
        content = "".join(message.content for message in completion)
        if not asked.messages:
            return content
        turns = [render_turn(message) for message in (*asked.messages, *completion)]
        tools = [openai_form(tool, strict=False) for tool in asked.tools] or None
        whole = str(
            self.tokenization.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
        )
        if whole.startswith(asked.rendered):
            return whole[len(asked.rendered) :]
        # Some templates write a finished answer otherwise than one to come (hidden reasoning).
        return content


def without_end(token_ids: tuple[int, ...], ends: frozenset[int]) -> tuple[int, ...]:
    """Return an answer without the tokens that end it."""
    length = len(token_ids)
    while length and token_ids[length - 1] in ends:
        length -= 1
    return token_ids[:length]


def completion_text(completion: Text, row: Fields) -> str:
    """Return a completion as its reader sees it, without its thought.

    Raises `InvalidRequest` for calls alone.
    """
    text = completion if isinstance(completion, str) else prompt_as_text(completion)
    text = without_thought(text)
    if not text.strip():
        raise row.wrong("the completion is a call of a function, which only the policy learns")
    return text


def without_thought(text: str) -> str:
    """Return a text without the thought that it begins with, if it begins with a whole one."""
    for form in tags.values():
        if text.lstrip().startswith(form.begin) and form.end in text:
            return text.partition(form.end)[2].lstrip()
    return text


def size_of_model(folder: Path) -> tuple[int, int]:
    """Return how many tokens the language model in a folder has positions and embeddings for.

    Raises `InvalidRequest` for a model without an output layer: transformers would load an encoder
    with one of random numbers.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    names = config.architectures or []
    if names and not any(name.endswith(WRITERS) for name in names):
        raise InvalidRequest(
            f"{folder}: a {', '.join(names)}, which writes no text; a causal language model is "
            "needed",
            param="model",
        )
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    return int(positions or 1 << 20), int(getattr(text_config, "vocab_size", None) or 1 << 31)


class EditTokenizer:
    """Tokenizes what users write of answers with the policy's tokenizer: edits and comments."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer from the model's folder."""
        self._tokenization = Tokenization(folder)

    def __call__(self, text: str, original: Sequence[int], thought: int = 0) -> tuple[int, ...]:
        """Token ids of `text` after the original's thought, ended as the original answer was.

        The first `thought` tokens of the original are its thought. A user's text never becomes a
        special token, whatever it spells. An original that was cut off says nothing of how to end:
        the tokenizer's end of sequence does then.
        """
        tokenizer = self._tokenization.tokenizer
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        ids = (*original[:thought], *ids)
        stops = self._tokenization.stop_token_ids
        ends = original[-1] if original and original[-1] in stops else tokenizer.eos_token_id
        return (*ids, ends) if ends is not None else ids

    def hinted(
        self, prompt: Sequence[int], messages: Sequence[ChatMessage], comment: str
    ) -> tuple[int, ...]:
        """See `hinted_prompt`."""
        return hinted_prompt(self._tokenization, prompt, messages, comment)
