# ruff: noqa: RUF001 (texts in several scripts)
"""Chunking: sentences of many languages, balanced passages, and text that no sentence splitter was made for."""

import itertools
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kser_tf.errors import ConfigError, MissingExtraError
from kser_tf.pipelines.chunking import (
    LONGEST_SENTENCE,
    check_language,
    clean_text,
    split_into_passages,
    split_sentences,
)


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["Dr. Lee lived in the U.S. until Jan. 2004.", "She paid $3.50, e.g. for tea.", "Was it good?", "Yes!"]),
        ("en", ['"Run!" she said.', "Nobody ran.", "The end..."]),
        ("de", ["Das ist z.B. ein Haus.", "Prof. Dr. Kern wohnt dort.", "Allein?"]),
        ("ru", ["Фильм снят в г. Казань.", "Он о войне, мире и т.д. Снято хорошо.", "Смотреть!"]),
        ("el", ["Ποιος είναι;", "Ένας ναύτης.", "Φεύγει αύριο."]),
    ],
)
def test_sentences_of_languages_with_spaces(language, sentences):
    found = split_sentences(" ".join(sentences), language=language)
    assert " ".join(found) == " ".join(sentences)
    # A splitter may leave two together rather than cut one in the middle; it must not cut at an abbreviation.
    assert all(any(sentence.endswith(piece.split(" ")[-1]) for sentence in sentences) for piece in found)
    assert len(found) >= len(sentences) - 1


@pytest.mark.parametrize(
    "sentences",
    [
        ["今日は雨です。", "明日は晴れるでしょう！", "本当ですか？"],
        ["他住在北京。", "她明天来吗？", "太好了！"],
        ["यह एक पुरानी कहानी है। ", "राजा कहाँ गया? ", "वह लौट आया।"],
        ["هل رأيت الفيلم؟ ", "نعم، أعجبني كثيرا. ", "إنه طويل!"],
        ["ይህ ታሪክ ነው። ", "ማን ነው፧"],
        ["ဒါက ဇာတ်လမ်းပါ။ ", "ကောင်းတယ်။"],
    ],
)
def test_sentences_of_scripts_with_their_own_marks(sentences):
    # The language is not told: the marks alone must do.
    assert split_sentences("".join(sentences)) == [sentence.strip() for sentence in sentences]


def test_lines_and_list_items_end_sentences():
    text = "What to expect:\r\n- long takes\n- no music\n\n* a dog\u2028• an ending"
    assert split_sentences(text) == ["What to expect:", "- long takes", "- no music", "* a dog", "• an ending"]


def test_text_without_ends_is_cut_at_spaces():
    words = [f"คำที่{number}" for number in range(150)]  # Thai has no full stop
    found = split_sentences(" ".join(words))
    assert len(found) > 3
    assert max(map(len, found)) <= LONGEST_SENTENCE
    assert " ".join(found).split() == words


def test_hard_cuts_keep_marks_with_their_letters():
    found = split_sentences("e\u0301" * 1000)
    assert "".join(found) == "e\u0301" * 1000
    assert all(piece.startswith("e") for piece in found)


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\u3000\u00a0", "\u200b\ufeff", "\x00\x01"])
def test_nothing_to_read_gives_no_passage(text):
    assert split_into_passages(text, 3) == []
    assert clean_text(text) == ""


@pytest.mark.parametrize("text", ["a", "雨", "?", "7", "👍", "…"])
def test_one_character_is_a_passage(text):
    assert split_into_passages(f" {text}\n", 3) == [text]


def test_passages_keep_text_and_have_single_spaces():
    text = "First  line.\nSecond\tline is here.   Third?\n\n\nFourth and last, which is longer than the others."
    passages = split_into_passages(text, 2)
    assert passages == [
        "First line. Second line is here. Third?",
        "Fourth and last, which is longer than the others.",
    ]
    assert split_into_passages(text, 1) == [" ".join(text.split())]


def test_no_space_is_put_between_sentences_that_have_none():
    assert split_into_passages("今日は雨です。明日は晴れるでしょう。", 1) == ["今日は雨です。明日は晴れるでしょう。"]


def test_halves_of_surrogate_pairs_are_replaced():
    assert clean_text("broken \ud83d text") == "broken \ufffd text"
    assert clean_text("\ud83d\ude00") == "\U0001f600"  # two halves that fit are one character
    assert split_into_passages("It is \udc00 broken. But goes on.", 2) == ["It is \ufffd broken.", "But goes on."]


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(4, 40), min_size=1, max_size=9), most=st.integers(1, 5))
def test_longest_passage_is_as_short_as_can_be(lengths, most):
    sentences = ["Q" + "z" * (length - 2) + "." for length in lengths]
    passages = split_into_passages(" ".join(sentences), most)
    assert " ".join(passages) == " ".join(sentences)

    def divisions():
        for count in range(1, min(most, len(lengths)) + 1):
            for cuts in itertools.combinations(range(1, len(lengths)), count - 1):
                edges = [0, *cuts, len(lengths)]
                yield max(sum(lengths[a:b]) for a, b in itertools.pairwise(edges)), count

    found = max(len(passage.replace(" ", "")) for passage in passages), len(passages)
    assert found == min(divisions())


def test_equal_sentences_are_shared_out_evenly():
    passages = split_into_passages(" ".join(["Qzzz zzzz zzz."] * 7), 3)
    assert sorted(passage.count("Q") for passage in passages) == [2, 2, 3]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "雨" * 1_000_000, "word " * 200_000, "Dr. " * 250_000])
def test_a_million_characters_are_divided(text):
    passages = split_into_passages(text, 3)
    assert "".join(passages).replace(" ", "") == text.replace(" ", "")
    assert max(map(len, passages)) < 1.01 * len(text) / 3


def test_open_quotation_marks_do_not_take_quadratic_time():
    began = time.process_time()
    assert len(split_into_passages("「雨。" * 100_000, 3)) == 3
    # About 1 s; about 40 s if the splitter were given the whole text.
    assert time.process_time() - began < 10


def test_at_least_one_passage_must_be_allowed():
    with pytest.raises(ConfigError, match=r"at least 1\. Received: 0"):
        split_into_passages("Text.", 0)


@pytest.mark.parametrize("language", ["en", "zh-Hant", "yue"])
def test_language_codes(language):
    check_language(language)


@pytest.mark.parametrize("language", ["English", "", "e", "EN"])
def test_other_languages_are_refused(language):
    with pytest.raises(ConfigError, match="must be an ISO 639 code"):
        check_language(language)


def test_missing_splitter_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(MissingExtraError, match=r"`sentencex` is not installed.*kser-tf\[encode\]"):
        split_sentences("Text.")
