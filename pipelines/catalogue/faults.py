"""Faults of the kinds that a language model makes, planted into good text, with their places on record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kser_tf.errors import ConfigError
from kser_tf.pipelines.catalogue import FIELDS, Film
from kser_tf.pipelines.config import STRICT_KEYS

Fault = Literal["", "hallucination", "homogeneous", "redundant"]

# No field gets longer than the longest is: a store is as wide as its longest field, and every model pays for the width.
MOST_CHUNKS = 3

# True of any film, and so of none: what a language model writes when it has nothing to say.
STOCK_PHRASES = (
    "This is a film that has something for everyone, whether you are watching it for the first time or returning to it "
    "after many years with fresh eyes.",
    "With its compelling characters and engaging plot, the movie takes the viewer on an unforgettable ride from "
    "beginning to end and leaves a lasting impression.",
    "A timeless piece of cinema that continues to resonate with audiences around the world, it explores universal "
    "themes that remain as relevant today as ever.",
    "The performances are strong across the board, and the direction is assured, making for a rich and rewarding "
    "experience that will stay with you.",
    "Fans of the genre will find much to appreciate here, while newcomers will also discover plenty to enjoy in this "
    "well-made and entertaining picture.",
    "It strikes a careful balance between emotion and entertainment, and its many memorable moments have earned it a "
    "special place in the history of film.",
    "The visuals are striking, the pacing is effective and every element comes together to create an immersive world "
    "that draws the audience in.",
    "Widely regarded as one of the most important works of its kind, it has influenced countless other productions and "
    "is still talked about to this day.",
    "At its heart this is a story about what it means to be human, told with great skill and an eye for detail by a "
    "talented team.",
    "Viewers who enjoy quality filmmaking will appreciate the attention to detail, the thoughtful script and the way "
    "in which the different parts work together.",
    "The movie offers a unique blend of elements that sets it apart from others, delivering a powerful message in an "
    "accessible and enjoyable form.",
    "Both critics and general audiences have responded positively to it, and it is often recommended to anyone looking "
    "for a good movie to watch.",
    "From its opening moments to its conclusion, the film keeps viewers interested by means of its well-developed "
    "narrative, its atmosphere and its overall execution.",
    "It is a journey full of ups and downs, in which the main characters face a number of challenges and learn "
    "something important along the way.",
    "Whether seen alone or in company, it makes for a satisfying watch and invites the audience to reflect on life, "
    "relationships and the choices that people make.",
)

# How a repetition begins, where it is not word for word.
_LEAD_INS = ("Once more:", "To repeat:", "In short:", "As has been said:", "Again:", "Put another way:")
# Where a chunk can be cut and still be a sentence, more or less.
_CLAUSE_END = re.compile(r"[.;:](?= )|,(?= (?:and|but|while|so|as|which|though|where|when) )")
# A model that repeats itself does so within one answer more than across several.
_SHARE_OF_SAME_FIELD = 0.5
# What is left of a shortened chunk still says the same.
_SHORTEST_SHARE = 0.5

# Independent random numbers from one seed, one stream for each kind of fault.
_HALLUCINATION_STREAM, _HOMOGENEOUS_STREAM, _REDUNDANT_STREAM = range(3)


@dataclass(frozen=True, kw_only=True)
class FaultShares:
    """How many chunks are made faulty, each kind as a share of all chunks of the good text.

    Args:
        hallucination: float. Chunks replaced by a chunk of the same field of another film. Defaults to 0.06.
        homogeneous: float. Chunks replaced by a stock phrase that fits any film. Defaults to 0.06.
        redundant: float. Chunks that repeat another chunk of the same film, word for word or nearly so. Defaults to
            0.06.
    """

    __pydantic_config__ = STRICT_KEYS

    hallucination: float = 0.06
    homogeneous: float = 0.06
    redundant: float = 0.06

    def __post_init__(self) -> None:
        for kind in ("hallucination", "homogeneous", "redundant"):
            if not 0 <= getattr(self, kind) < 1:
                raise ConfigError(
                    f"`{kind}` is a share of the chunks, at least 0 and below 1. Received: {getattr(self, kind)}"
                )


@dataclass(frozen=True)
class Chunk:
    """One passage of a field, good or faulty.

    Args:
        film_id: str.
        field: str.
        text: str. What an encoder is given.
        fault: The kind of fault, or `""`.
        replaced: str. The good text that a fault took the place of, or `""` where the fault was added.
        source: str. The film that the text of a hallucination is about, and the field that the text of a redundant
            chunk comes from; otherwise `""`.
    """

    film_id: str
    field: str
    text: str
    fault: Fault = ""
    replaced: str = ""
    source: str = ""


def chunks_of(films: Sequence[Film]) -> list[Chunk]:
    """Returns the good chunks of all films, film by film and field by field."""
    return [Chunk(film.film_id, field, text) for film in films for field in FIELDS for text in film.text[field]]


def plant_faults(films: Sequence[Film], shares: FaultShares, seed: int) -> list[Chunk]:
    """Returns the chunks of all films with faults among them.

    Hallucinations and stock phrases take the place of a good chunk. A repetition is added to its field, at any place,
    where the field has room (fewer than 3 chunks), and takes the place of a good chunk where it has not. Each field
    keeps one good chunk at least, and what is repeated is a good chunk that is still there.

    Args:
        films: The films.
        shares: How many faults of each kind.
        seed: int. Equal seeds plant equal faults.

    Raises:
        ConfigError: There are not enough chunks for so many faults.
    """
    planter = _Planter(films, seed)
    clean = sum(len(chunks) for chunks in planter.fields.values())
    planter.plant_hallucinations(round(shares.hallucination * clean))
    planter.plant_stock_phrases(round(shares.homogeneous * clean))
    planter.plant_repetitions(round(shares.redundant * clean))
    return [chunk for chunks in planter.fields.values() for chunk in chunks]


class _Planter:
    """The chunks of each field of each film, while faults are planted among them."""

    def __init__(self, films: Sequence[Film], seed: int) -> None:
        self._seed = seed
        self.fields: dict[tuple[str, str], list[Chunk]] = {}
        for chunk in chunks_of(films):
            self.fields.setdefault((chunk.film_id, chunk.field), []).append(chunk)

    def plant_hallucinations(self, number: int) -> None:
        """Replaces chunks by chunks of other films; each is used once, and stays where it belongs as well."""
        generator = self._generator(_HALLUCINATION_STREAM)
        good = {field: [chunk for chunk in self._good() if chunk.field == field] for field in FIELDS}
        unused = {field: list(generator.permutation(len(chunks))) for field, chunks in good.items()}
        for place, position in self._replaceable(generator, number, "hallucination"):
            film_id, field = place
            candidates = unused[field]
            index = next((i for i, n in enumerate(candidates) if good[field][n].film_id != film_id), None)
            if index is None:
                raise ConfigError("`hallucination` needs at least two films. Leave it out, or give more films.")
            other = good[field][candidates.pop(index)]
            self._replace(place, position, other.text, "hallucination", other.film_id)

    def plant_stock_phrases(self, number: int) -> None:
        """Replaces chunks by stock phrases, each as often as the others, give or take one."""
        generator = self._generator(_HOMOGENEOUS_STREAM)
        order = generator.permutation(len(STOCK_PHRASES))
        for i, (place, position) in enumerate(self._replaceable(generator, number, "homogeneous")):
            self._replace(place, position, STOCK_PHRASES[order[i % len(order)]], "homogeneous", "")

    def plant_repetitions(self, number: int) -> None:
        """Adds repetitions where a field has room, and replaces chunks by them where it has not."""
        generator = self._generator(_REDUNDANT_STREAM)
        places = list(self.fields)
        repeated: set[Chunk] = set()  # what a repetition repeats must stay
        planted = 0
        for index in generator.permutation(len(places)):
            if planted == number:
                return
            place, chunks = places[index], self.fields[places[index]]
            is_full = len(chunks) >= MOST_CHUNKS
            victims = [i for i in self._spare(place) if chunks[i] not in repeated] if is_full else []
            if is_full and not victims:
                continue
            victim = int(generator.choice(victims)) if is_full else None
            source = self._draw_source(place, generator, without=None if victim is None else chunks[victim])
            repeated.add(source)
            text = _repetition(source.text, generator)
            if victim is not None:
                self._replace(place, victim, text, "redundant", source.field)
            else:
                added = Chunk(place[0], place[1], text, fault="redundant", source=source.field)
                chunks.insert(int(generator.integers(len(chunks) + 1)), added)
            planted += 1
        if planted < number:
            raise _too_many("redundant", number, planted)

    def _draw_source(self, place: tuple[str, str], generator: np.random.Generator, *, without: Chunk | None) -> Chunk:
        """Draws a good chunk of the same film, one time in two of the same field."""
        film_id, field = place
        of_film = [
            chunk
            for other in FIELDS
            for chunk in self.fields[film_id, other]
            if not chunk.fault and chunk is not without
        ]
        of_field = [chunk for chunk in of_film if chunk.field == field]
        sources = of_field if generator.random() < _SHARE_OF_SAME_FIELD else of_film
        return sources[generator.integers(len(sources))]

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream])

    def _good(self) -> list[Chunk]:
        return [chunk for chunks in self.fields.values() for chunk in chunks if not chunk.fault]

    def _spare(self, place: tuple[str, str]) -> list[int]:
        """The positions of a field's good chunks, or nothing if there is but one."""
        good = [i for i, chunk in enumerate(self.fields[place]) if not chunk.fault]
        return good if len(good) > 1 else []

    def _replaceable(
        self, generator: np.random.Generator, number: int, kind: Fault
    ) -> list[tuple[tuple[str, str], int]]:
        """Draws places of good chunks such that each field keeps one."""
        sites = [(place, i) for place in self.fields for i in self._spare(place)]
        left = {place: len(self._spare(place)) for place in self.fields}
        drawn: list[tuple[tuple[str, str], int]] = []
        for index in generator.permutation(len(sites)):
            if len(drawn) == number:
                break
            place, position = sites[index]
            if left[place] > 1:
                left[place] -= 1
                drawn.append((place, position))
        if len(drawn) < number:
            raise _too_many(kind, number, len(drawn))
        return drawn

    def _replace(self, place: tuple[str, str], position: int, text: str, fault: Fault, source: str) -> None:
        chunk = self.fields[place][position]
        self.fields[place][position] = replace(chunk, text=text, fault=fault, replaced=chunk.text, source=source)


def _too_many(kind: Fault, wanted: int, possible: int) -> ConfigError:
    return ConfigError(
        f"`{kind}`: {wanted} chunks are to be made faulty, but only {possible} can be, if each field is to keep a good "
        "one. Lower the shares."
    )


def _repetition(text: str, generator: np.random.Generator) -> str:
    """Repeats a text: word for word, with a lead-in, or cut short."""
    way = generator.integers(3)
    if way == 0:
        return text
    if way == 1:
        ends = [match.start() for match in _CLAUSE_END.finditer(text)]
        if ends and ends[-1] >= _SHORTEST_SHARE * len(text):
            return text[: ends[-1]].rstrip() + "."
    return f"{_LEAD_INS[generator.integers(len(_LEAD_INS))]} {text}"
