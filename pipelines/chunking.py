"""From text to passages: sentences of any language, put together to a few passages of about one length."""

from __future__ import annotations

import bisect
import importlib
import re
import unicodedata
from collections.abc import Callable, Iterator

from kser_tf.errors import ConfigError, MissingExtraError

# What is longer than this without an end is cut at a space: text in Thai, which does not mark the ends of sentences,
# and lists and tables that were flattened. About three ordinary sentences.
LONGEST_SENTENCE = 300

# The splitter's time grows with the square of the text's length where quotation marks stay open (a million characters:
# 4 minutes). In pieces of this many characters, a million take a second at worst. Paragraphs are hardly ever longer.
_SPLITTER_WINDOW = 4000

_LINE_BREAK = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")
_WHITE_SPACE = re.compile(r"\s+")
# A place to cut a sentence without an end: behind a space, or behind a comma, semicolon or colon of any script.
_GOOD_CUT = re.compile(r"\s+|[,;:،؛、，；：՝፣፤፥]+\s*")  # noqa: RUF001 (commas of several scripts)
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")


def clean_text(text: str) -> str:
    """Returns a text with each run of white space as one space, or `""` where there is nothing to read.

    Texts of nothing but white space, control characters and invisible marks have nothing to read. Halves of surrogate
    pairs, which are not text, become U+FFFD.
    """
    text = _whole_characters(text)
    if not any(character.isprintable() and not character.isspace() for character in text):
        return ""
    return _WHITE_SPACE.sub(" ", text).strip()


def split_sentences(text: str, *, language: str = "en") -> list[str]:
    """Splits a text into sentences.

    The ends of sentences are found in any script (`.` `!` `?`, `。` `！` `？`, danda, `؟`, `።` ...); line breaks and
    list items end a sentence too. Abbreviations are those of `language`. What is longer than 300 characters without an
    end is cut at a space or comma, or where there is none, between two characters.

    Args:
        text: The text.
        language: str. ISO 639 code of the language whose abbreviations do not end a sentence ("Dr.", "z.B.", "т.д.").
            Defaults to `"en"`.

    Returns:
        The sentences, without white space around them; nothing for a text with nothing to read.

    Raises:
        MissingExtraError: The package sentencex is not installed.
    """
    text = _whole_characters(text)
    return [text[start:end] for start, end in _sentence_spans(text, language)]


def split_into_passages(text: str, most: int, *, language: str = "en") -> list[str]:
    """Divides a text into at most `most` passages of consecutive sentences, the longest as short as can be.

    Of all such divisions it is one with the fewest passages, each of them as near to an equal share of what is left as
    that allows. Equal texts give equal passages.

    Args:
        text: The text.
        most: int. The most passages, at least 1.
        language: str. As for `split_sentences`.

    Returns:
        The passages, with each run of white space as one space; nothing for a text with nothing to read.

    Raises:
        MissingExtraError: The package sentencex is not installed.

    Example:
        >>> split_into_passages("A slow start. Then it rains. A heist follows, and goes wrong.", 2)
        ['A slow start. Then it rains.', 'A heist follows, and goes wrong.']
    """
    if most < 1:
        raise ConfigError(f"the number of passages must be at least 1. Received: {most}")
    text = _whole_characters(text)
    spans = list(_sentence_spans(text, language))
    cuts = _balance([end - start for start, end in spans], most)
    passages = [text[spans[first][0] : spans[behind - 1][1]] for first, behind in cuts]
    return [passage for passage in map(clean_text, passages) if passage]


def check_language(language: str) -> None:
    """Raises a `ConfigError` if `language` does not look like an ISO 639 code."""
    if not _LANGUAGE_CODE.fullmatch(language):
        raise ConfigError(f"`language` must be an ISO 639 code, such as en, de or ja. Received: {language!r}")


def _whole_characters(text: str) -> str:
    """Returns a text without halves of surrogate pairs, which neither sentence splitters nor tokenizers take."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sentence_spans(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Where each sentence begins and ends in `text`, without white space around it."""
    segment = _sentence_splitter()
    for line_start, line_end in _between(_LINE_BREAK, text):
        for window_start, window_end in _windows(text, line_start, line_end, _SPLITTER_WINDOW):
            start = window_start
            for sentence in segment(language, text[window_start:window_end]):
                end = start + len(sentence)
                for piece_start, piece_end in _windows(text, start, end, LONGEST_SENTENCE):
                    piece = text[piece_start:piece_end]
                    stripped = piece.strip()
                    if clean_text(stripped):
                        first = piece_start + len(piece) - len(piece.lstrip())
                        yield first, first + len(stripped)
                start = end


def _between(separator: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in separator.finditer(text):
        yield start, match.start()
        start = match.end()
    yield start, len(text)


def _windows(text: str, start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Divides `text[start:end]` into pieces of at most `longest` characters, behind a space or comma where it can."""
    while end - start > longest:
        cuts = [match.end() for match in _GOOD_CUT.finditer(text, start, start + longest)]
        # A cut in the first half would make short pieces of text that has only a few spaces.
        if cuts and cuts[-1] - start > longest // 2:
            cut = cuts[-1]
        else:
            cut = start + longest
            while cut - start > longest // 2 and unicodedata.category(text[cut]).startswith("M"):
                cut -= 1  # an accent or vowel sign stays with its letter
        yield start, cut
        start = cut
    if end > start:
        yield start, end


def _balance(lengths: list[int], most: int) -> list[tuple[int, int]]:
    """Divides consecutive lengths into at most `most` groups such that the largest sum is least.

    Returns:
        For each group its first index, and the index behind its last.
    """
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    total, count = ends[-1], len(lengths)
    if count == 0:
        return []

    def fill(capacity: int) -> list[int]:
        """Cuts from the end such that each group is as full as `capacity` allows; the last cut is the first group's."""
        cuts, behind = [], count
        while behind > 0:
            behind = bisect.bisect_left(ends, ends[behind] - capacity, 0, behind)
            cuts.append(behind)
        return cuts

    low, high = max(max(lengths), -(-total // most)), total
    while low < high:
        middle = (low + high) // 2
        if len(fill(middle)) <= most:
            high = middle
        else:
            low = middle + 1
    # Each cut may lie anywhere between the earliest place, which leaves the rest full to capacity, and the place that
    # fills its own group to capacity. Of these, the one nearest to an equal share of what is left.
    earliest = fill(low)[::-1]  # begins with 0
    groups, first = [], 0
    for remaining in range(len(earliest), 1, -1):
        latest = bisect.bisect_right(ends, ends[first] + low) - 1
        soonest = max(earliest[len(earliest) - remaining + 1], first + 1)
        share = ends[first] + (total - ends[first]) / remaining
        cut = min(range(soonest, latest + 1), key=lambda place: abs(ends[place] - share), default=soonest)
        groups.append((first, cut))
        first = cut
    groups.append((first, count))
    return groups


def _sentence_splitter() -> Callable[[str, str], list[str]]:
    try:
        return importlib.import_module("sentencex").segment
    except ImportError:
        raise MissingExtraError("sentencex", "encode") from None
