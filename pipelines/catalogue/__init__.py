"""The built-in catalogue of the demo: 240 well-known films, with knowledge about each in three fields.

The texts (`films.jsonl`) were written for this project by a language model, film by film, and are under the project's
licence, Apache-2.0. They are honest and were read through, but they are no reference: a detail may be wrong.

The facets of a film are what its text tells about, tagged by the writer. They are the hidden truth that the demo's
clicks are simulated from (`kser_tf.pipelines.simulate`), and no model is given them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILMS_FILE = Path(__file__).with_name("films.jsonl")

# For each field of the text the facets that it may tell about.
FACETS: dict[str, tuple[str, ...]] = {
    "story": (
        "abuse_of_power",
        "artificial_or_alien_minds",
        "class_divide",
        "coming_of_age",
        "doomed_love",
        "family_bonds",
        "guilt_and_redemption",
        "heist_or_con",
        "identity_and_memory",
        "journey",
        "mystery_unravelled",
        "obsession",
        "revenge",
        "survival",
        "unlikely_friendship",
        "war_and_its_cost",
    ),
    "craft": (
        "bold_colour",
        "documentary_realism",
        "elaborate_design",
        "fast_cutting",
        "fractured_timeline",
        "improvised_acting",
        "long_takes",
        "memorable_music",
        "monochrome_light",
        "practical_effects",
        "rapid_dialogue",
        "silence_and_restraint",
    ),
    "audience": (
        "adrenaline",
        "brain_teaser",
        "comfort_viewing",
        "cult_midnight",
        "dark_and_disturbing",
        "history_lovers",
        "laugh_out_loud",
        "music_lovers",
        "patient_viewers",
        "romantics",
        "tearjerker",
        "whole_family",
    ),
}
FIELDS = tuple(FACETS)


@dataclass(frozen=True)
class Film:
    """One film of the catalogue.

    Args:
        film_id: str. The title in ASCII, with hyphens, and the year.
        title: str.
        year: int. Of the first showing.
        country: str. The main country of production.
        genres: One to three.
        facets: For each field what its text tells about, from `FACETS`.
        text: For each field two or three chunks of one or two sentences.
    """

    film_id: str
    title: str
    year: int
    country: str
    genres: tuple[str, ...]
    facets: dict[str, tuple[str, ...]]
    text: dict[str, tuple[str, ...]]

    @property
    def all_facets(self) -> frozenset[str]:
        """The facets of all fields."""
        return frozenset(facet for facets in self.facets.values() for facet in facets)


def load_films() -> list[Film]:
    """Reads the built-in catalogue, in order of the year.

    Example:
        >>> [film.title for film in load_films() if film.film_id == "casablanca-1942"]
        ['Casablanca']
    """
    with open(FILMS_FILE, encoding="utf-8") as lines:
        return [_film(json.loads(line)) for line in lines]


def _film(row: dict[str, Any]) -> Film:
    return Film(
        film_id=row["film_id"],
        title=row["title"],
        year=row["year"],
        country=row["country"],
        genres=tuple(row["genres"]),
        facets={field: tuple(row["facets"][field]) for field in FIELDS},
        text={field: tuple(row[field]) for field in FIELDS},
    )
