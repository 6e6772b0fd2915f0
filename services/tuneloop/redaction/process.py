"""The process that finds personal data, started by `redactor`: a JSON list of texts a line.

The first line says what to look for. Each further one is answered with the texts as they may be
kept, or with null where one could not be examined. Nothing is written to standard error: what
libraries log there might quote a text.

Presidio finds what has a pattern or a checksum (https://microsoft.github.io/presidio/). Names and
places need a spaCy pipeline with entity recognition; without one no pipeline is loaded at all, and
nothing is ever downloaded.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

LEAST_SCORE = 0.4
"""Weaker findings, such as any nine digits for a social security number, are left alone."""

Finding = tuple[int, int, str]
"""Start, end and entity."""


def main() -> None:
    """Answer until standard input ends."""
    logging.disable()
    asked = json.loads(sys.stdin.readline())
    if not asked["model"]:
        # Presidio imports spaCy, and that imports torch where it is: a third of a GiB for nothing.
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        find = make_finder(**asked)
    except (ImportError, ValueError, OSError) as error:
        answer({"problem": str(error)})
        return
    answer({"problem": ""})
    for line in sys.stdin:
        try:
            answer([replace_found(text, find(text)) for text in json.loads(line)])
        except Exception:  # whatever it is, the text was not examined
            answer(None)


def answer(value: object) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def make_finder(
    entities: list[str], language: str, model: str
) -> Callable[[str], Iterable[Finding]]:
    """Return a function that finds these entities.

    Raises `ImportError`, `ValueError` and `OSError`.
    """
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NoOpNlpEngine

    if model:
        engine = load_pipeline(language, model)
    else:
        engine = NoOpNlpEngine(models=[{"lang_code": language, "model_name": ""}])
        engine.load()
    by_pattern = list(pattern_recognizers(language))
    known = {entity for one in by_pattern for entity in one.supported_entities}
    known.update(engine.get_supported_entities())
    if unknown := sorted(set(entities) - known):
        raise ValueError(
            f"entities: nothing finds {', '.join(unknown)}; known "
            f"{f'with {model}' if model else 'without a model'}: {', '.join(sorted(known))}"
        )
    wanted = [one for one in by_pattern if set(one.supported_entities) & set(entities)]
    registry = RecognizerRegistry(recognizers=wanted, supported_languages=[language])
    if model:
        registry.add_nlp_recognizer(nlp_engine=engine)
    analyzer = AnalyzerEngine(
        registry=registry,
        nlp_engine=engine,
        supported_languages=[language],
        default_score_threshold=LEAST_SCORE,
    )
    placeholder = re.compile(f"<(?:{'|'.join(map(re.escape, entities))})>")

    def find(text: str) -> Iterator[Finding]:
        kept = [match.span() for match in placeholder.finditer(text)]
        for one in analyzer.analyze(text, language=language, entities=entities):
            if not any(start <= one.start and one.end <= end for start, end in kept):
                yield one.start, one.end, one.entity_type

    return find


def load_pipeline(language: str, model: str) -> Any:
    """Return an engine with a spaCy pipeline. Raises `ValueError` if that is not installed."""
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # Presidio would download it.
    if not (spacy.util.is_package(model) or (Path(model) / "config.cfg").is_file()):
        raise ValueError(f"model: {model!r} is neither an installed spaCy pipeline nor its folder")
    engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model}])
    engine.load()
    return engine


def pattern_recognizers(language: str) -> Iterator[Any]:
    """Yield every recognizer of Presidio's that needs nothing but the text."""
    from presidio_analyzer import PatternRecognizer, predefined_recognizers

    class AnyEmailRecognizer(predefined_recognizers.EmailRecognizer):  # type: ignore[misc]
        """Addresses of internal domains too; nor is a list of public ones fetched."""

        def validate_result(self, pattern_text: str) -> None:
            """Take what has the form of an address."""

    yield AnyEmailRecognizer(supported_language=language)
    for kind in vars(predefined_recognizers).values():
        if not isinstance(kind, type) or kind is predefined_recognizers.EmailRecognizer:
            continue
        if issubclass(kind, PatternRecognizer) or kind is predefined_recognizers.PhoneRecognizer:
            yield kind(supported_language=language)


def replace_found(text: str, found: Iterable[Finding]) -> str:
    """Return the text with `<ENTITY>` in the place of each finding; overlapping ones are one."""
    merged: list[Finding] = []
    for start, end, entity in sorted(found, key=lambda one: (one[0], -one[1])):
        if merged and start < merged[-1][1]:
            first, last, longest = merged[-1]
            merged[-1] = (first, max(last, end), longest)
        else:
            merged.append((start, end, entity))
    pieces, position = [], 0
    for start, end, entity in merged:
        pieces += [text[position:start], f"<{entity}>"]
        position = end
    return "".join((*pieces, text[position:]))


if __name__ == "__main__":
    main()
