"""The job `simulate`: the demo's data, made from the built-in catalogue and simulated clicks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from kser_tf.errors import ConfigError
from kser_tf.files import new_directory
from kser_tf.metrics import auc
from kser_tf.pipelines.catalogue import FACETS, FIELDS, FILMS_FILE, Film, load_films
from kser_tf.pipelines.catalogue.faults import Chunk, FaultShares, plant_faults
from kser_tf.pipelines.config import STRICT_KEYS
from kser_tf.pipelines.job import current_result, fingerprint_of, refuse_foreign_folder, write_job

ALL_FACETS = tuple(facet for field_name in FIELDS for facet in FACETS[field_name])

# What divides users: who likes the one side dislikes the other. The facets are chosen such that the text tells them
# well, and genre, year and country tell them badly (measured by regressions on the other films of the catalogue).
TASTE_AXES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "calm": (
        ("patient_viewers", "silence_and_restraint", "long_takes"),
        ("adrenaline", "fast_cutting", "practical_effects"),
    ),
    "senses": (
        ("memorable_music", "music_lovers", "bold_colour"),
        ("documentary_realism", "history_lovers", "war_and_its_cost"),
    ),
    "warmth": (
        ("family_bonds", "whole_family", "comfort_viewing", "tearjerker"),
        ("dark_and_disturbing", "cult_midnight", "brain_teaser"),
    ),
    "talk": (
        ("rapid_dialogue", "improvised_acting", "laugh_out_loud"),
        ("elaborate_design", "bold_colour", "survival"),
    ),
}
# What most people like and dislike.
APPEAL = (
    ("family_bonds", "memorable_music", "elaborate_design", "rapid_dialogue", "tearjerker"),
    ("documentary_realism", "improvised_acting", "cult_midnight", "silence_and_restraint"),
)

# A user's likes and dislikes of single facets that have nothing to do with the axes.
OWN_FACETS = 4
_OWN_WEIGHT = 0.5
# Part of a film's appeal (as variance) that its facets explain; the rest is the film's own.
_APPEAL_BY_FACETS = 0.85
# Some users click more than others (standard deviation of the logit).
_USER_BIAS = 0.3

# How often a film is shown falls with its rank as a power law, flat among the first few; of about equal weight in the
# rank is that the film is liked.
_POPULARITY_POWER = 2.4
_POPULARITY_FLAT_RANKS = 12
_POPULARITY_BY_APPEAL = 0.25

# Interactions per user: a gamma distribution of this shape (standard deviation: half of the mean), cut off such that
# every user has a history and no user has seen everything.
_ACTIVITY_SHAPE = 4.0
FEWEST_INTERACTIONS = 10
_MOST_OF_CATALOGUE = 0.75
# Half of the catalogue: above it, the cut would lower the mean.
MOST_MEAN_INTERACTIONS = 120

AGE_BANDS = ("under 25", "25-34", "35-49", "50-64", "65 and over")
REGIONS = ("north", "east", "south", "west")
# How far demographics give the taste away: correlation of age with "calm", and logit of the region per unit of taste.
_AGE_CORRELATION = 0.4
_REGION_SLOPE = 0.4

_FIRST_DAY = 1_704_067_200  # 2024-01-01T00:00:00Z
_SECONDS_PER_DAY = 86_400
_DAYS_OF_ARRIVAL = 365
_MEAN_DAYS_BETWEEN = 2.0

# Ridge penalty of the oracles below, in units of a standardised column's sum of squares over one film.
_ORACLE_PENALTY = 5.0
# Countries with fewer films than this tell an oracle (and a model) nothing about another film.
_FEWEST_FILMS_OF_COUNTRY = 3

# Independent random numbers from one seed, one stream for each use; changing one thing leaves the others as they were.
_TASTE_STREAM, _FILM_STREAM, _USER_STREAM, _EXPOSURE_STREAM, _CLICK_STREAM, _TIME_STREAM = range(6)


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Writes the demo's data: knowledge of 240 real films with planted faults, and simulated users and clicks.

    Args:
        output: Folder that the data is written to. One that this job wrote before is replaced; any other is left alone.
        users: How many users are simulated. Defaults to 2000.
        interactions: Mean number of films that a user is shown, from 10 to 120. Defaults to 60.
        seed: Of everything that is random. Defaults to 1.
        taste_strength: How far a user's taste decides (standard deviation of its part of the click's logit). Defaults
            to 1.5.
        genre_share: Part of the taste (as variance) that is about genres, which the features tell, and not about
            facets, which only the text tells. Defaults to 0.08.
        appeal_strength: How far it decides that a film is liked by most (standard deviation of the logit). Defaults to
            1.0.
        noise: Standard deviation of the logit from one occasion to the next. Defaults to 0.3.
        faults: How many chunks of the text are made faulty: hallucination, homogeneous, redundant, each a share of all
            chunks. Defaults to 0.06 each.
    """

    __pydantic_config__ = STRICT_KEYS

    output: str
    users: int = 2000
    interactions: float = 60.0
    seed: int = 1
    taste_strength: float = 1.5
    genre_share: float = 0.08
    appeal_strength: float = 1.0
    noise: float = 0.3
    faults: FaultShares = field(default_factory=FaultShares)

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ConfigError(f"`users` must be at least 1. Received: {self.users}")
        if not FEWEST_INTERACTIONS <= self.interactions <= MOST_MEAN_INTERACTIONS:
            raise ConfigError(
                f"`interactions` must be from {FEWEST_INTERACTIONS} to {MOST_MEAN_INTERACTIONS}. "
                f"Received: {self.interactions}"
            )
        if self.seed < 0:
            raise ConfigError(f"`seed` must not be negative. Received: {self.seed}")
        for key in ("taste_strength", "appeal_strength", "noise"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) >= 0):
                raise ConfigError(f"`{key}` must be a number, not negative. Received: {getattr(self, key)}")
        if not 0 <= self.genre_share <= 1:
            raise ConfigError(f"`genre_share` is a fraction from 0 to 1. Received: {self.genre_share}")


def simulate(config: SimulateConfig) -> dict[str, Any]:
    """Writes the demo's data. The films and their text are real; users, tastes and clicks are simulated.

    A user has a weight for each facet of the films (facets are what the text tells about): from four axes of taste that
    all users share, and from a few likes and dislikes of their own. A user has a taste in genres too, and a film has an
    appeal to all, most of which lies in its facets. The logit of a click is the sum of these. Genres, year and country
    give some of it away, the text much more. Which films a user is shown depends on the films' popularity alone.

    The folder holds

    - `log.parquet`: user_id, film_id, timestamp (seconds), click (0 or 1), in order of time;
    - `films.parquet`: film_id, title, year, genres, country: the features, without facets;
    - `users.parquet`: user_id, age_band, region, which give a little of the taste away;
    - `texts.parquet`: one row a chunk: film_id, field, position, text, fault. No model sees the column `fault`;
    - `faults.parquet`: for each planted fault also the good text it took the place of, and where its text comes from;
    - `truth.parquet`: for each row of the log the true probability of a click and its parts, for tests and for what is
      reachable; no model sees it;
    - `job.json`.

    It is there whole or not at all. Equal configurations write equal tables. If nothing has changed, nothing is done.

    Args:
        config: How much, and how it is made.

    Returns:
        Counts of films, chunks, faults, users and clicks, and under `auc` what is reachable: `ceiling` (of the true
        probability, no model can beat it but by luck), `features` and `facets` (of one who knows each user's true
        opinion of all the other films, and guesses the one on this film from its features, or from its facets: what
        features and text can tell at best about a film never seen).

    Raises:
        ConfigError: The output folder holds something else, or there are too many faults for the text.

    Example:
        ```python
        simulate(SimulateConfig(output="runs/demo/simulated", users=500))
        ```
    """
    started = time.monotonic()
    inputs = simulate_inputs(config)
    done = current_result(config.output, job="simulate", config=config, inputs=inputs)
    if done is not None:
        return done
    refuse_foreign_folder(Path(config.output), job="simulate")
    films = load_films()
    chunks = plant_faults(films, config.faults, config.seed)
    opinions = _form_opinions(films, config)
    log = _simulate_clicks(opinions, config)
    with new_directory(config.output, overwrite=True) as folder:
        for name, table in {
            "texts": _texts_table(chunks),
            "faults": _faults_table(chunks),
            "films": _films_table(films),
            "users": _users_table(opinions, config),
            "log": _log_table(log, films),
            "truth": _truth_table(log, opinions, films),
        }.items():
            pa.parquet.write_table(table, folder / f"{name}.parquet")
        result = {
            "films": len(films),
            "chunks": len(chunks),
            "faults": {
                kind: sum(chunk.fault == kind for chunk in chunks)
                for kind in ("hallucination", "homogeneous", "redundant")
            },
            "users": config.users,
            "interactions": len(log.clicks),
            "click_rate": round(float(log.clicks.mean()), 4),
            "auc": _reachable(log, opinions, films),
        }
        write_job(
            folder, job="simulate", config=config, inputs=inputs, result=result, seconds=time.monotonic() - started
        )
    return result


def simulate_inputs(config: SimulateConfig) -> dict[str, str]:
    """Returns the fingerprint of what the job reads: the built-in catalogue."""
    return {"films": fingerprint_of(FILMS_FILE)}


@dataclass(frozen=True)
class _Opinions:
    """What users think of films: the parts of a click's logit.

    Args:
        axes: float64 (users, axes): where users stand on the axes of taste.
        by_facets: float64 (users, films).
        by_genres: float64 (users, films).
        appeal: float64 (films,).
        bias: float64 (users,).
    """

    axes: np.ndarray
    by_facets: np.ndarray
    by_genres: np.ndarray
    appeal: np.ndarray
    bias: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        """float64 (users, films): the logit of a click, but for the noise of the occasion."""
        return np.asarray(self.by_facets + self.by_genres + self.appeal + self.bias[:, None])


@dataclass(frozen=True)
class _Clicks:
    """The log, in order of time.

    Args:
        users: int64 (n,): numbers of the users.
        films: int64 (n,): numbers of the films.
        times: int64 (n,): seconds.
        clicks: int8 (n,).
        probabilities: float64 (n,): of a click, the noise of the occasion averaged out.
    """

    users: np.ndarray
    films: np.ndarray
    times: np.ndarray
    clicks: np.ndarray
    probabilities: np.ndarray


def facet_matrix(films: Sequence[Film]) -> np.ndarray:
    """Returns which film has which facet, float64 (films, facets), columns in the order of `ALL_FACETS`."""
    return _indicators([film.all_facets for film in films], ALL_FACETS)


def feature_matrix(films: Sequence[Film]) -> np.ndarray:
    """Returns what the features tell of each film: genres, decade and country, float64 (films, columns)."""
    genres = sorted({genre for film in films for genre in film.genres})
    decades = sorted({film.year // 10 for film in films})
    countries = [film.country for film in films]
    common = sorted({country for country in countries if countries.count(country) >= _FEWEST_FILMS_OF_COUNTRY})
    return np.hstack(
        [
            _indicators([film.genres for film in films], genres),
            _indicators([[film.year // 10] for film in films], decades),
            _indicators([[country] for country in countries], common),
        ]
    )


def opinions_from_others(opinions: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Guesses each user's opinion of each film from the user's true opinions of all the other films.

    A ridge regression on what is known of the films, for each user; its leave-one-out values in closed form.

    Args:
        opinions: float64 (users, films).
        known: float64 (films, columns): what is known of a film.

    Returns:
        float64 (users, films).
    """
    centred = known - known.mean(axis=0)
    design = np.hstack([np.ones((len(known), 1)), centred])
    penalty = np.diag([0.0] + [_ORACLE_PENALTY] * centred.shape[1])
    hat = design @ np.linalg.solve(design.T @ design + penalty, design.T)
    own_weight = np.diag(hat)
    return np.asarray((opinions @ hat.T - opinions * own_weight) / (1 - own_weight))


def _form_opinions(films: Sequence[Film], config: SimulateConfig) -> _Opinions:
    facets = facet_matrix(films)
    facets -= facets.mean(axis=0)
    generator = np.random.default_rng([config.seed, _TASTE_STREAM])
    directions = np.stack([_direction(likes, dislikes) for likes, dislikes in TASTE_AXES.values()])
    directions /= (facets @ directions.T).std(axis=0)[:, None]
    axes = generator.normal(size=(config.users, len(directions)))
    weights = axes @ directions + _own_likes(generator, config.users)
    genres = sorted({genre for film in films for genre in film.genres})
    of_genres = _indicators([film.genres for film in films], genres)
    of_genres /= of_genres.sum(axis=1, keepdims=True)
    genre_weights = generator.normal(size=(config.users, len(genres)))

    film_generator = np.random.default_rng([config.seed, _FILM_STREAM])
    appeal = math.sqrt(_APPEAL_BY_FACETS) * _standardised(facets @ _direction(*APPEAL))
    appeal += math.sqrt(1 - _APPEAL_BY_FACETS) * _standardised(film_generator.normal(size=len(films)))
    return _Opinions(
        axes=axes,
        by_facets=config.taste_strength * math.sqrt(1 - config.genre_share) * _taste(weights @ facets.T),
        by_genres=config.taste_strength * math.sqrt(config.genre_share) * _taste(genre_weights @ of_genres.T),
        appeal=config.appeal_strength * appeal,
        bias=_USER_BIAS * generator.normal(size=config.users),
    )


def _simulate_clicks(opinions: _Opinions, config: SimulateConfig) -> _Clicks:
    users, films = opinions.by_facets.shape
    exposure = np.random.default_rng([config.seed, _EXPOSURE_STREAM])
    most = int(_MOST_OF_CATALOGUE * films)
    counts = np.round(exposure.gamma(_ACTIVITY_SHAPE, config.interactions / _ACTIVITY_SHAPE, size=users))
    counts = np.clip(counts, FEWEST_INTERACTIONS, most).astype(np.int64)
    # The largest of log weight + Gumbel noise: a draw without replacement, by weight.
    keys = np.log(_popularity(opinions.appeal, exposure)) + exposure.gumbel(size=(users, films))
    shown = np.argsort(-keys, axis=1)
    # Else every user would begin with the most popular films.
    of_user = [exposure.permutation(shown[user, : counts[user]]) for user in range(users)]
    user_numbers, film_numbers = np.repeat(np.arange(users), counts), np.concatenate(of_user)

    clicking = np.random.default_rng([config.seed, _CLICK_STREAM])
    logits = opinions.logits[user_numbers, film_numbers]
    occasion = config.noise * clicking.normal(size=len(logits))
    clicks = clicking.random(len(logits)) < _sigmoid(logits + occasion)
    times = _times(counts, np.random.default_rng([config.seed, _TIME_STREAM]))
    order = np.argsort(times, kind="stable")
    return _Clicks(
        users=user_numbers[order],
        films=film_numbers[order],
        times=times[order],
        clicks=clicks[order].astype(np.int8),
        probabilities=_averaged_sigmoid(logits[order], config.noise),
    )


def _own_likes(generator: np.random.Generator, users: int) -> np.ndarray:
    """Draws for each user a few facets and whether they are liked, float64 (users, facets)."""
    drawn = np.argsort(generator.random((users, len(ALL_FACETS))), axis=1)[:, :OWN_FACETS]
    weights = np.zeros((users, len(ALL_FACETS)))
    signs = generator.choice([-_OWN_WEIGHT, _OWN_WEIGHT], size=drawn.shape)
    np.put_along_axis(weights, drawn, signs, axis=1)
    return weights


def _popularity(appeal: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns how often films are shown, up to a factor, float64 (films,)."""
    score = math.sqrt(_POPULARITY_BY_APPEAL) * _standardised(appeal)
    score += math.sqrt(1 - _POPULARITY_BY_APPEAL) * generator.normal(size=len(appeal))
    ranks = np.argsort(np.argsort(-score))
    return np.asarray((ranks + _POPULARITY_FLAT_RANKS) ** -_POPULARITY_POWER)


def _times(counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns strictly rising times for each user, int64, user after user."""
    gaps = 1 + np.floor(generator.exponential(_MEAN_DAYS_BETWEEN * _SECONDS_PER_DAY, size=int(counts.sum())))
    arrivals = _FIRST_DAY + np.floor(generator.random(len(counts)) * _DAYS_OF_ARRIVAL * _SECONDS_PER_DAY)
    since = np.cumsum(gaps)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.asarray(since - np.repeat(since[starts] - arrivals, counts), dtype=np.int64)


def _reachable(log: _Clicks, opinions: _Opinions, films: Sequence[Film]) -> dict[str, float]:
    def of(guesses: np.ndarray) -> float:
        return round(float(auc(log.clicks, guesses[log.users, log.films])), 4)

    logits = opinions.logits
    return {
        "ceiling": of(logits),
        "features": of(opinions_from_others(logits, feature_matrix(films))),
        "facets": of(opinions_from_others(logits, facet_matrix(films))),
    }


def _texts_table(chunks: Sequence[Chunk]) -> pa.Table:
    return pa.table(
        {
            "film_id": [chunk.film_id for chunk in chunks],
            "field": [chunk.field for chunk in chunks],
            "position": pa.array(_positions(chunks), pa.int32()),
            "text": [chunk.text for chunk in chunks],
            "fault": [chunk.fault for chunk in chunks],
        }
    )


def _faults_table(chunks: Sequence[Chunk]) -> pa.Table:
    faulty = [(chunk, position) for chunk, position in zip(chunks, _positions(chunks), strict=True) if chunk.fault]
    columns = ("film_id", "field", "fault", "text", "replaced", "source")
    table = {name: pa.array([getattr(chunk, name) for chunk, _ in faulty], pa.string()) for name in columns}
    return pa.table({**table, "position": pa.array([position for _, position in faulty], pa.int32())})


def _films_table(films: Sequence[Film]) -> pa.Table:
    return pa.table(
        {
            "film_id": [film.film_id for film in films],
            "title": [film.title for film in films],
            "year": pa.array([film.year for film in films], pa.int32()),
            "genres": [list(film.genres) for film in films],
            "country": [film.country for film in films],
        }
    )


def _users_table(opinions: _Opinions, config: SimulateConfig) -> pa.Table:
    generator = np.random.default_rng([config.seed, _USER_STREAM])
    calm, senses = opinions.axes[:, 0], opinions.axes[:, 1]
    age = _AGE_CORRELATION * calm + math.sqrt(1 - _AGE_CORRELATION**2) * generator.normal(size=config.users)
    ranks = np.argsort(np.argsort(age))
    bands = ranks * len(AGE_BANDS) // config.users
    # The largest of logit + Gumbel noise: a draw by softmax. The regions stand at equal steps along the axis.
    slopes = _REGION_SLOPE * np.linspace(-1.5, 1.5, len(REGIONS))
    regions = np.argmax(senses[:, None] * slopes + generator.gumbel(size=(config.users, len(REGIONS))), axis=1)
    return pa.table(
        {
            "user_id": _user_ids(range(config.users)),
            "age_band": [AGE_BANDS[band] for band in bands],
            "region": [REGIONS[region] for region in regions],
        }
    )


def _log_table(log: _Clicks, films: Sequence[Film]) -> pa.Table:
    return pa.table(
        {
            "user_id": _user_ids(log.users),
            "film_id": [films[film].film_id for film in log.films],
            "timestamp": log.times,
            "click": log.clicks,
        }
    )


def _truth_table(log: _Clicks, opinions: _Opinions, films: Sequence[Film]) -> pa.Table:
    return pa.table(
        {
            "user_id": _user_ids(log.users),
            "film_id": [films[film].film_id for film in log.films],
            "probability": log.probabilities,
            "facet_logit": opinions.by_facets[log.users, log.films],
            "genre_logit": opinions.by_genres[log.users, log.films],
            "appeal_logit": opinions.appeal[log.films],
            "user_logit": opinions.bias[log.users],
        }
    )


def _positions(chunks: Sequence[Chunk]) -> list[int]:
    """The number of each chunk in its field, from 0. A field's chunks stand together."""
    positions: list[int] = []
    for i, chunk in enumerate(chunks):
        follows = i > 0 and (chunks[i - 1].film_id, chunks[i - 1].field) == (chunk.film_id, chunk.field)
        positions.append(positions[-1] + 1 if follows else 0)
    return positions


def _user_ids(numbers: Iterable[int]) -> list[str]:
    return [f"user-{number + 1:05d}" for number in numbers]


def _direction(likes: Iterable[str], dislikes: Iterable[str]) -> np.ndarray:
    """Returns 1 for facets that are liked, -1 for those that are disliked, float64 (facets,)."""
    return _indicators([likes], ALL_FACETS)[0] - _indicators([dislikes], ALL_FACETS)[0]


def _indicators(rows: Iterable[Iterable[Any]], columns: Sequence[Any]) -> np.ndarray:
    """Returns which row holds which value, float64 (rows, columns)."""
    sets = [set(row) for row in rows]
    return np.array([[float(column in values) for column in columns] for values in sets])


def _standardised(values: np.ndarray) -> np.ndarray:
    """Returns values of mean 0 and standard deviation 1; equal ones become 0."""
    return np.asarray((values - values.mean()) / (values.std() or 1.0))


def _taste(scores: np.ndarray) -> np.ndarray:
    """Returns scores (users, films) of mean 0 for each user and standard deviation 1 over all."""
    scores = scores - scores.mean(axis=1, keepdims=True)
    return np.asarray(scores / scores.std())


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _averaged_sigmoid(logits: np.ndarray, noise: float) -> np.ndarray:
    """Returns the mean of the sigmoid over normal noise on the logit (Gauss-Hermite quadrature)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    return np.asarray(_sigmoid(logits[:, None] + noise * nodes) @ weights / weights.sum())
