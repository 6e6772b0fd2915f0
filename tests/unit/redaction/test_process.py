"""What is found without any model, and what takes its place."""

import pytest

from tuneloop.redaction.process import make_finder, replace_found

pytest.importorskip("presidio_analyzer")


@pytest.mark.parametrize(
    ("entity", "text"),
    [
        ("EMAIL_ADDRESS", "ann@example.org"),
        # Of no public domain.
        ("EMAIL_ADDRESS", "ann@mail.corp.internal"),
        ("PHONE_NUMBER", "+49 30 901820-4711"),
        ("PHONE_NUMBER", "212-555-0187"),
        ("CREDIT_CARD", "4012 8888 8888 1881"),
        ("IBAN_CODE", "DE89 3704 0044 0532 0130 00"),
        ("IP_ADDRESS", "192.168.4.71"),
        ("URL", "www.example.org"),
        ("US_SSN", "078-05-1123"),
        ("CRYPTO", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"),
        ("UK_NINO", "AB 12 34 56 C"),
    ],
)
@pytest.mark.parametrize("language", ["en", "de"])
def test_entities_with_a_pattern_are_found_in_every_language(
    entity: str, text: str, language: str
) -> None:
    find = make_finder([entity], language, "")
    before = f"This is {text}, I think."
    assert replace_found(before, find(before)) == f"This is <{entity}>, I think."
    # What was replaced is not found again.
    again = f"This is <{entity}>, I think."
    assert replace_found(again, find(again)) == again


@pytest.mark.parametrize(
    "text",
    [
        "It was on 2026-11-30 at 10:35:12.",
        "4012 8888 8888 1882 is no card: its checksum is wrong.",
        "The answer is 42, or 123456789.",
        "",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    find = make_finder(["EMAIL_ADDRESS", "CREDIT_CARD", "US_SSN", "IBAN_CODE"], "en", "")
    assert replace_found(text, find(text)) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([], "0123456789"),
        ([(2, 4, "A")], "01<A>456789"),
        ([(8, 10, "B"), (0, 2, "A")], "<A>234567<B>"),
        # Overlapping: one of both, called as the one that begins first and is longer.
        ([(2, 5, "A"), (2, 7, "B"), (6, 9, "C")], "01<B>9"),
        # Side by side.
        ([(2, 4, "A"), (4, 6, "B")], "01<A><B>6789"),
    ],
)
def test_findings_are_replaced(found: list[tuple[int, int, str]], text: str) -> None:
    assert replace_found("0123456789", found) == text
