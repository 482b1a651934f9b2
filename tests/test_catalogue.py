"""The built-in catalogue: is it what it says it is, and are faults planted where they are said to be?"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kser_tf.errors import ConfigError
from kser_tf.pipelines.catalogue import FACETS, FIELDS, FILMS_FILE, load_films
from kser_tf.pipelines.catalogue.faults import (
    MOST_CHUNKS,
    STOCK_PHRASES,
    Chunk,
    FaultShares,
    chunks_of,
    plant_faults,
)
from kser_tf.pipelines.config import from_mapping

GENRES = {
    *("Action", "Adventure", "Animation", "Comedy", "Crime", "Drama", "Fantasy", "Horror", "Musical", "Mystery"),
    *("Romance", "Science Fiction", "Thriller", "War", "Western"),
}
LEAD_INS = ("Once more:", "To repeat:", "In short:", "As has been said:", "Again:", "Put another way:")
FILMS = load_films()
CLEAN = chunks_of(FILMS)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_catalogue_is_of_the_promised_size():
    assert len(FILMS) == 240
    assert len(CLEAN) > 1800
    assert FILMS_FILE.stat().st_size < 1 << 20


def test_a_film_is_read_as_it_stands_in_the_file():
    film = next(film for film in FILMS if film.film_id == "casablanca-1942")
    assert (film.title, film.year, film.country) == ("Casablanca", 1942, "USA")
    assert film.genres == ("Romance", "Drama", "War")
    assert film.facets["story"] == ("doomed_love", "war_and_its_cost", "unlikely_friendship")
    assert film.text["story"][0].startswith("Rick Blaine once waited on a wet station platform for Ilsa Lund")
    assert len(film.all_facets) == 9


def test_ids_are_unique_slugs_that_end_in_the_year():
    assert len({film.film_id for film in FILMS}) == len(FILMS)
    for film in FILMS:
        assert re.fullmatch(rf"[a-z0-9]+(-[a-z0-9]+)*-{film.year}", film.film_id)
    assert [film.year for film in FILMS] == sorted(film.year for film in FILMS)


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_has_two_or_three_chunks_and_known_facets(field):
    for film in FILMS:
        assert 2 <= len(film.text[field]) <= MOST_CHUNKS, film.film_id
        assert 2 <= len(film.facets[field]) <= 4, film.film_id
        assert len(set(film.facets[field])) == len(film.facets[field]), film.film_id
        assert set(film.facets[field]) <= set(FACETS[field]), film.film_id


def test_every_facet_is_told_of_often_enough_to_be_learned():
    told = Counter(facet for film in FILMS for facet in film.all_facets)
    assert set(told) == {facet for facets in FACETS.values() for facet in facets}
    assert min(told.values()) >= 20


def test_features_are_filled_in():
    for film in FILMS:
        assert 1 <= len(film.genres) <= 3
        assert set(film.genres) <= GENRES
        assert len(set(film.genres)) == len(film.genres)
        assert film.title.strip() == film.title != ""
        assert film.country


def test_chunks_are_one_or_two_sentences_and_name_neither_facet_nor_year():
    years = {film.film_id: str(film.year) for film in FILMS}
    for chunk in CLEAN:
        assert 18 <= len(chunk.text.split()) <= 52, chunk
        assert "_" not in chunk.text
        assert years[chunk.film_id] not in chunk.text, chunk
        assert chunk.text == chunk.text.strip()


def test_no_two_chunks_are_of_one_mould():
    assert len({chunk.text for chunk in CLEAN}) == len(CLEAN)
    runs: dict[tuple[str, ...], str] = {}
    openings = Counter()
    for chunk in CLEAN:
        tokens = words(chunk.text)
        openings[tuple(tokens[:4])] += 1
        for start in range(len(tokens) - 6):
            run = tuple(tokens[start : start + 7])
            assert runs.setdefault(run, chunk.film_id) == chunk.film_id, f"{' '.join(run)!r} in {chunk}"
    assert max(openings.values()) <= 2


def by_field(chunks: list[Chunk]) -> dict[tuple[str, str], list[Chunk]]:
    fields: dict[tuple[str, str], list[Chunk]] = {}
    for chunk in chunks:
        fields.setdefault((chunk.film_id, chunk.field), []).append(chunk)
    return fields


def check_record(chunks: list[Chunk], clean: list[Chunk]) -> None:
    """Every promise of `plant_faults` but for the numbers."""
    clean_fields, fields = by_field(clean), by_field(chunks)
    assert list(fields) == list(clean_fields)
    for place, there in fields.items():
        good = [chunk for chunk in there if not chunk.fault]
        assert good
        assert len(there) <= MOST_CHUNKS
        # Nothing of the good text is lost to the record, and nothing is in it twice.
        replaced = [chunk.replaced for chunk in there if chunk.replaced]
        assert sorted([chunk.text for chunk in good] + replaced) == sorted(chunk.text for chunk in clean_fields[place])
    good_texts = {(chunk.film_id, chunk.field): set() for chunk in clean}
    for chunk in chunks:
        if not chunk.fault:
            good_texts[chunk.film_id, chunk.field].add(chunk.text)
    for chunk in (chunk for chunk in chunks if chunk.fault):
        if chunk.fault == "hallucination":
            assert chunk.source != chunk.film_id
            assert chunk.text in {other.text for other in clean_fields[chunk.source, chunk.field]}
            assert chunk.replaced
        elif chunk.fault == "homogeneous":
            assert chunk.text in STOCK_PHRASES
            assert chunk.source == ""
            assert chunk.replaced
        else:
            core = chunk.text.split(": ", 1)[1] if chunk.text.split(":")[0] + ":" in LEAD_INS else chunk.text
            sources = good_texts[chunk.film_id, chunk.source]
            assert any(core == text or text.startswith(core.removesuffix(".")) for text in sources), chunk


def test_default_faults_are_six_percent_of_each_kind():
    counts = Counter(chunk.fault for chunk in plant_faults(FILMS, FaultShares(), seed=1))
    expected = round(0.06 * len(CLEAN))
    assert (counts["hallucination"], counts["homogeneous"], counts["redundant"]) == (expected,) * 3


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shares=st.builds(FaultShares, **dict.fromkeys(("hallucination", "homogeneous", "redundant"), st.floats(0, 0.11))),
    films=st.lists(st.sampled_from(FILMS), min_size=8, max_size=40, unique_by=lambda film: film.film_id),
)
def test_faults_are_where_the_record_says(seed, shares, films):
    clean = chunks_of(films)
    chunks = plant_faults(films, shares, seed)
    check_record(chunks, clean)
    counts = Counter(chunk.fault for chunk in chunks)
    for kind, share in dataclasses.asdict(shares).items():
        assert counts[kind] == round(share * len(clean))


def test_all_ways_of_repeating_occur():
    repetitions = [chunk for chunk in plant_faults(FILMS, FaultShares(), seed=1) if chunk.fault == "redundant"]
    originals = {chunk.text for chunk in CLEAN}
    verbatim = sum(chunk.text in originals for chunk in repetitions)
    led_in = sum(chunk.text.startswith(LEAD_INS) for chunk in repetitions)
    assert min(verbatim, led_in, len(repetitions) - verbatim - led_in) >= 10
    added = sum(not chunk.replaced for chunk in repetitions)
    assert 0 < added < len(repetitions)
    same_field = sum(chunk.source == chunk.field for chunk in repetitions)
    assert len(repetitions) / 2 <= same_field < len(repetitions)


def test_stock_phrases_are_used_evenly():
    used = Counter(c.text for c in plant_faults(FILMS, FaultShares(), seed=1) if c.fault == "homogeneous")
    assert len(used) == len(STOCK_PHRASES)
    assert max(used.values()) - min(used.values()) <= 1


def test_equal_seeds_plant_equal_faults():
    first = plant_faults(FILMS, FaultShares(), seed=3)
    assert plant_faults(FILMS, FaultShares(), seed=3) == first
    assert plant_faults(FILMS, FaultShares(), seed=4) != first


def test_without_shares_the_text_stays_clean():
    assert plant_faults(FILMS, FaultShares(hallucination=0, homogeneous=0, redundant=0), seed=1) == CLEAN


def test_too_many_faults_are_refused():
    with pytest.raises(ConfigError, match=r"`homogeneous`: .* chunks are to be made faulty, but only \d+ can be"):
        plant_faults(FILMS, FaultShares(hallucination=0.4, homogeneous=0.4), seed=1)
    with pytest.raises(ConfigError, match=r"`redundant`: .*Lower the shares"):
        plant_faults(FILMS, FaultShares(redundant=0.9), seed=1)


def test_a_hallucination_needs_another_film():
    with pytest.raises(ConfigError, match="`hallucination` needs at least two films"):
        plant_faults(FILMS[:1], FaultShares(hallucination=0.2), seed=1)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_is_a_fraction(share):
    with pytest.raises(ConfigError, match="`redundant` is a share of the chunks"):
        FaultShares(redundant=share)


def test_an_unknown_kind_of_fault_is_refused():
    with pytest.raises(ConfigError, match="Did you mean `hallucination`"):
        from_mapping(FaultShares, {"hallucinations": 0.1}, source="demo.yaml")
