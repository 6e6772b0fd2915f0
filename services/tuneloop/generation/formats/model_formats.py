"""The formats that a model writes thoughts and calls in, and what they make of a request."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from tuneloop.generation.formats.answer import AnswerReader
from tuneloop.generation.formats.detokenization import Detokenizer
from tuneloop.generation.formats.reasoning import ReasoningFormat, constrain_answer
from tuneloop.generation.formats.tool_calls import (
    ToolFormat,
    ToolParser,
    check_tools,
    constrain_to_calls,
)
from tuneloop.rollouts import Prompt, SamplingParameters


class ModelTokens(Protocol):
    """What is needed of a model's tokenizer."""

    tokenizer: Any
    stop_token_ids: frozenset[int]

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template shows tools to the model."""
        ...

    def hidden_tokens(self, shown: frozenset[str] | None) -> frozenset[int]:
        """Return the tokens that no text shows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFormats:
    """Formats of one model; None: it does not think, or calls nothing."""

    tokens: ModelTokens
    reasoning: ReasoningFormat | None = None
    tools: ToolFormat | None = None

    def check(self, prompt: Prompt) -> None:
        """Raise `InvalidRequest` if the conversation needs tools that are not available."""
        check_tools(prompt, self.tools, in_template=self.tokens.takes_tools)

    def constrain_to_tools(
        self, sampling: SamplingParameters, prompt: Prompt
    ) -> SamplingParameters:
        """Return the parameters with the grammar that holds the model to the calls asked for."""
        if prompt.tool_use is None or self.tools is None:
            return sampling
        return constrain_to_calls(sampling, prompt.tool_use, self.tools)

    def thinks(self, prompt: Prompt) -> bool:
        """Return whether thoughts are told apart: in the answers of conversations."""
        return self.reasoning is not None and bool(prompt.messages)

    def for_engine(
        self, sampling: SamplingParameters, prompt: Prompt, rendered: str, budget: int | None
    ) -> SamplingParameters:
        """Return the parameters for the engine: grammar and stop strings are for the answer."""
        if self.reasoning is None or not self.thinks(prompt):
            return sampling
        return constrain_answer(
            replace(sampling, stop=()),
            self.reasoning,
            rendered,
            calls=prompt.tool_use is not None,
            budget=budget,
        )

    def parser(self, prompt: Prompt) -> ToolParser | None:
        """Return a parser for the calls of one completion, if it may have any."""
        use = prompt.tool_use
        return None if use is None or self.tools is None else self.tools.parser(use)

    def reader(
        self, sampling: SamplingParameters, prompt: Prompt, rendered: str
    ) -> AnswerReader | None:
        """Return a reader for one completion, calls included, if thoughts are told apart."""
        if self.reasoning is None or not self.thinks(prompt):
            return None
        parser = self.parser(prompt)
        hidden = self.tokens.hidden_tokens(None if parser else self.reasoning.marks)
        return AnswerReader(
            Detokenizer(tokenizer=self.tokens.tokenizer, hidden=hidden),
            self.reasoning.parser(rendered),
            parser,
            stop=sampling.stop,
            stop_token_ids=self.tokens.stop_token_ids,
        )
