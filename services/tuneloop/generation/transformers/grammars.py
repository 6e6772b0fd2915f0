"""Masks tokens that a JSON schema or a structural tag does not allow, with xgrammar.

For the engine on plain transformers; vLLM uses the same library by itself.
"""

import importlib.util
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch

from tuneloop.errors import InvalidRequest
from tuneloop.generation.engine import grammar_problem
from tuneloop.rollouts import SamplingParameters

CACHE_BYTES = 64 * 2**20


class Grammar:
    """The position of one completion in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        from xgrammar import allocate_token_bitmask

        self.matcher = matcher
        self.mask = allocate_token_bitmask(1, vocab_size)

    def allow(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask the tokens in logits [vocab] that cannot come next."""
        from xgrammar import apply_token_bitmask_inplace

        allowed = logits.float().clone()
        if self.matcher.fill_next_token_bitmask(self.mask):
            apply_token_bitmask_inplace(allowed[None], self.mask)
        return allowed

    def accept(self, token: int) -> None:
        """Advance by the token that was sampled."""
        self.matcher.accept_token(token)


class Grammars:
    """Compiles the grammars of requests, equal ones once."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_token_ids: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.stop_token_ids = sorted(stop_token_ids)

    @cached_property
    def compiler(self) -> Any:
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            self.tokenizer, vocab_size=self.vocab_size, stop_token_ids=self.stop_token_ids
        )
        return xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=CACHE_BYTES)

    def compile(self, sampling: SamplingParameters) -> Any:
        """Return a request's compiled grammar, or None without one. Raises `InvalidRequest`."""
        if not sampling.constrained:
            return None
        param = sampling.grammar_field
        if importlib.util.find_spec("xgrammar") is None:
            raise InvalidRequest(f"{param}: needs the package xgrammar, or vLLM", param=param)
        try:
            if sampling.structural_tag:
                return self.compiler.compile_structural_tag(sampling.structural_tag)
            return self.compiler.compile_json_schema(sampling.json_schema)
        except (RuntimeError, ValueError) as error:
            raise InvalidRequest(f"{param}: {grammar_problem(error)}", param=param) from error

    def begin(self, compiled: Any) -> Grammar:
        """Return the start of a completion in a compiled grammar."""
        from xgrammar import GrammarMatcher

        return Grammar(GrammarMatcher(compiled), self.vocab_size)
