"""The demo's simulated data: what is written, and whether it is what the demo needs it to be."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from kser_tf.errors import ConfigError
from kser_tf.metrics import auc
from kser_tf.pipelines.catalogue import FACETS, load_films
from kser_tf.pipelines.catalogue.faults import FaultShares, plant_faults
from kser_tf.pipelines.config import add_flags, from_flags, from_mapping
from kser_tf.pipelines.job import read_job
from kser_tf.pipelines.prepare import PrepareConfig, prepare
from kser_tf.pipelines.simulate import (
    ALL_FACETS,
    FEWEST_INTERACTIONS,
    TASTE_AXES,
    SimulateConfig,
    facet_matrix,
    feature_matrix,
    opinions_from_others,
    simulate,
)
from kser_tf.schema import DatasetSchema

TABLES = {
    "texts": ["film_id", "field", "position", "text", "fault"],
    "faults": ["film_id", "field", "fault", "text", "replaced", "source", "position"],
    "films": ["film_id", "title", "year", "genres", "country"],
    "users": ["user_id", "age_band", "region"],
    "log": ["user_id", "film_id", "timestamp", "click"],
    "truth": ["user_id", "film_id", "probability", "facet_logit", "genre_logit", "appeal_logit", "user_logit"],
}
DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
FILMS = load_films()


def read(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> tuple[dict[str, pd.DataFrame], dict]:
    """The data of the default configuration, and the job's result."""
    folder = tmp_path_factory.mktemp("simulate") / "simulated"
    result = simulate(SimulateConfig(output=str(folder)))
    return read(folder), result


def small(tmp_path: Path, name: str = "simulated", **changes) -> dict[str, pd.DataFrame]:
    simulate(SimulateConfig(output=str(tmp_path / name), **{"users": 40, **changes}))
    return read(tmp_path / name)


def test_tables_have_their_columns_and_hide_the_facets(default):
    tables, _ = default
    assert {name: list(table.columns) for name, table in tables.items()} == TABLES
    for name in ("films", "users", "log"):
        values = set(tables[name].drop(columns="genres", errors="ignore").astype(str).to_numpy().ravel())
        assert not values & set(ALL_FACETS)


def test_films_are_those_of_the_catalogue(default):
    tables, result = default
    films = tables["films"].set_index("film_id")
    assert result["films"] == len(films) == 240
    assert films.loc["alien-1979", "title"] == "Alien"
    assert films.loc["alien-1979", "year"] == 1979
    assert list(films.loc["alien-1979", "genres"]) == ["Horror", "Science Fiction"]
    assert set(tables["log"]["film_id"]) <= set(films.index)


def test_texts_are_the_chunks_with_their_faults(default):
    tables, result = default
    texts = tables["texts"]
    chunks = plant_faults(FILMS, FaultShares(), seed=1)
    assert list(texts["text"]) == [chunk.text for chunk in chunks]
    assert list(texts["fault"]) == [chunk.fault for chunk in chunks]
    positions = texts.groupby(["film_id", "field"])["position"].agg(list)
    assert all(found == list(range(len(found))) for found in positions)
    assert result["chunks"] == len(texts)
    assert result["faults"] == texts["fault"].replace("", pd.NA).dropna().value_counts().to_dict()


def test_faults_are_on_record_with_what_they_replaced(default):
    tables, _ = default
    place = ["film_id", "field", "position"]
    faulty = tables["texts"].query("fault != ''").set_index(place)
    record = tables["faults"].set_index(place)
    assert record.index.equals(faulty.index)
    assert record["text"].equals(faulty["text"])
    first = next(chunk for chunk in plant_faults(FILMS, FaultShares(), seed=1) if chunk.fault)
    assert record.iloc[0][["fault", "replaced", "source"]].to_list() == [first.fault, first.replaced, first.source]


def test_log_is_in_order_of_time_and_no_user_sees_a_film_twice(default):
    tables, result = default
    log = tables["log"]
    assert len(log) == result["interactions"]
    assert log["timestamp"].is_monotonic_increasing
    assert not log.duplicated(["user_id", "film_id"]).any()
    assert not log.duplicated(["user_id", "timestamp"]).any()
    assert set(log["click"]) == {0, 1}
    assert set(log["user_id"]) == set(tables["users"]["user_id"])
    per_user = log.groupby("user_id").size()
    assert 55 < per_user.mean() < 65
    assert per_user.min() >= FEWEST_INTERACTIONS
    assert per_user.quantile(0.9) > 2 * per_user.quantile(0.1)


def test_exposure_has_a_long_tail(default):
    shown = default[0]["log"].groupby("film_id").size().sort_values()
    assert len(shown) == 240
    assert shown.iloc[-1] > 15 * shown.iloc[0]
    assert shown.iloc[-48:].sum() > 0.45 * shown.sum()


def test_true_probabilities_are_calibrated(default):
    """Clicks are drawn with the recorded probability: in each tenth of it, as many as expected."""
    tables, _ = default
    clicks, probability = tables["log"]["click"].to_numpy(), tables["truth"]["probability"].to_numpy()
    for part in np.array_split(np.argsort(probability), 10):
        error = (clicks[part] - probability[part]).mean()
        deviation = np.sqrt((probability[part] * (1 - probability[part])).mean() / len(part))
        assert abs(error) < 4 * deviation


def test_numbers_are_those_of_a_realistic_click_log(default):
    tables, result = default
    assert 0.4 < result["click_rate"] < 0.6
    assert result["click_rate"] == pytest.approx(tables["log"]["click"].mean(), abs=1e-4)
    reachable = result["auc"]
    assert 0.80 < reachable["ceiling"] < 0.85
    assert reachable["ceiling"] == pytest.approx(auc(tables["log"]["click"], tables["truth"]["probability"]), abs=1e-4)
    # What the demo is about: on films never seen there is much that features cannot tell and text can.
    assert reachable["features"] + 0.1 < reachable["facets"] < reachable["ceiling"]
    assert reachable["features"] > 0.6


def test_truth_adds_up_to_the_probability(tmp_path):
    truth = small(tmp_path, noise=0.0)["truth"]
    logits = truth[["facet_logit", "genre_logit", "appeal_logit", "user_logit"]].sum(axis=1)
    np.testing.assert_allclose(truth["probability"], 1 / (1 + np.exp(-logits)), rtol=1e-12)


def test_noise_of_the_occasion_is_averaged_out(tmp_path):
    truth = small(tmp_path, noise=1.0)["truth"].head(20)
    logits = truth[["facet_logit", "genre_logit", "appeal_logit", "user_logit"]].sum(axis=1).to_numpy()
    draws = np.random.default_rng(0).normal(size=200_000)
    means = [(1 / (1 + np.exp(-(logit + draws)))).mean() for logit in logits]
    np.testing.assert_allclose(truth["probability"], means, atol=2e-3)


def test_strengths_are_standard_deviations_and_shares_are_variances(tmp_path):
    strong = small(tmp_path, users=400, taste_strength=2.0, genre_share=0.25, appeal_strength=0.0)["truth"]
    assert (strong["appeal_logit"] == 0).all()
    assert strong["film_id"].nunique() > 200
    assert strong["facet_logit"].std() == pytest.approx(2 * np.sqrt(0.75), rel=0.1)
    assert strong["genre_logit"].std() == pytest.approx(2 * np.sqrt(0.25), rel=0.1)
    genres_alone = small(tmp_path, "genres", genre_share=1.0)["truth"]
    assert (genres_alone["facet_logit"] == 0).all()
    assert genres_alone["genre_logit"].std() > 1


def test_what_a_user_likes_is_told_by_facets_and_not_by_chance(default):
    """A film's mean opinion is one number; users who like calm films like other calm films better than loud ones."""
    tables, _ = default
    calm, loud = (
        {film.film_id for film in FILMS if len(film.all_facets & set(side)) >= 2} for side in TASTE_AXES["calm"]
    )
    log = tables["log"].assign(opinion=tables["truth"]["facet_logit"])
    log["half"] = log.groupby("user_id").cumcount() % 2

    def preference(half: int) -> pd.Series:
        rows = log[log["half"] == half]
        means = [rows[rows["film_id"].isin(side)].groupby("user_id")["click"].mean() for side in (calm, loud)]
        return means[0] - means[1]

    both = pd.concat([preference(0), preference(1)], axis=1).dropna()
    assert both.corr().iloc[0, 1] > 0.2


def test_demographics_give_a_little_of_the_taste_away(default):
    tables, _ = default
    users = tables["users"]
    assert users.groupby("age_band").size().between(380, 420).all()
    assert users.groupby("region").size().between(350, 650).all()
    calm = {film.film_id for film in FILMS if len(film.all_facets & set(TASTE_AXES["calm"][0])) >= 2}
    opinions = tables["truth"][tables["truth"]["film_id"].isin(calm)].groupby("user_id")["facet_logit"].mean()
    by_age = opinions.groupby(users.set_index("user_id")["age_band"]).agg(["mean", "std"])
    gap = by_age.loc["65 and over", "mean"] - by_age.loc["under 25", "mean"]
    assert 0.2 * by_age["std"].mean() < gap < 2 * by_age["std"].mean()


def test_facet_matrix_of_a_known_film():
    row = facet_matrix(FILMS)[[film.film_id for film in FILMS].index("casablanca-1942")]
    assert row.sum() == 9
    assert row[ALL_FACETS.index("doomed_love")] == 1
    assert row[ALL_FACETS.index("heist_or_con")] == 0


def test_feature_matrix_holds_genres_decade_and_common_countries():
    films = [film for film in FILMS if film.country in ("Poland", "India")]
    matrix = feature_matrix(films)
    genres, decades = {g for f in films for g in f.genres}, {f.year // 10 for f in films}
    assert matrix.shape == (len(films), len(genres) + len(decades) + 1)  # Poland has one film, and so no column
    np.testing.assert_array_equal(matrix[:, -1], [film.country == "India" for film in films])


def test_all_axes_are_made_of_known_facets():
    known = {facet for facets in FACETS.values() for facet in facets}
    assert set(ALL_FACETS) == known
    for likes, dislikes in TASTE_AXES.values():
        assert set(likes) | set(dislikes) <= known
        assert not set(likes) & set(dislikes)


def test_opinions_from_others_never_see_the_opinion_itself():
    """The closed form is the ridge regression that is fitted anew without each film (centred on all of them)."""
    generator = np.random.default_rng(0)
    known, opinions = generator.normal(size=(12, 3)), generator.normal(size=(4, 12))
    design = np.hstack([np.ones((12, 1)), known - known.mean(axis=0)])
    penalty = np.diag([0.0, 5.0, 5.0, 5.0])
    expected = np.empty_like(opinions)
    for film in range(12):
        others = np.arange(12) != film
        x = design[others]
        weights = np.linalg.solve(x.T @ x + penalty, x.T @ opinions[:, others].T)
        expected[:, film] = design[film] @ weights
    np.testing.assert_allclose(opinions_from_others(opinions, known), expected, rtol=1e-9)


def test_equal_configurations_write_equal_tables(tmp_path):
    first, again, other = small(tmp_path, "a"), small(tmp_path, "b"), small(tmp_path, "c", seed=2)
    for name in TABLES:
        pd.testing.assert_frame_equal(first[name], again[name])
    for name in ("texts", "users", "log", "truth"):
        assert not first[name].equals(other[name])
    assert first["films"].astype(str).equals(other["films"].astype(str))


def test_faults_leave_the_clicks_as_they_are(tmp_path):
    clean = small(tmp_path, "clean", faults=FaultShares(hallucination=0, homogeneous=0, redundant=0))
    faulty = small(tmp_path, "faulty")
    pd.testing.assert_frame_equal(clean["log"], faulty["log"])
    assert len(clean["faults"]) == 0
    assert set(clean["texts"]["fault"]) == {""}


def test_the_job_says_what_it_did_and_is_not_done_twice(tmp_path):
    config = SimulateConfig(output=str(tmp_path / "simulated"), users=40)
    result = simulate(config)
    job = read_job(tmp_path / "simulated")
    assert job is not None
    assert job["job"] == "simulate"
    assert job["result"] == result
    assert job["config"]["faults"] == {"hallucination": 0.06, "homogeneous": 0.06, "redundant": 0.06}
    before = (tmp_path / "simulated" / "log.parquet").stat().st_mtime_ns
    assert simulate(config) == result
    assert (tmp_path / "simulated" / "log.parquet").stat().st_mtime_ns == before
    assert simulate(SimulateConfig(output=str(tmp_path / "simulated"), users=41))["users"] == 41


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that `simulate` did not write"):
        simulate(SimulateConfig(output=str(tmp_path), users=40))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_of_a_job_that_fails(tmp_path):
    with pytest.raises(ConfigError, match="Lower the shares"):
        simulate(SimulateConfig(output=str(tmp_path / "simulated"), users=40, faults=FaultShares(redundant=0.9)))
    assert list(tmp_path.iterdir()) == []


def test_one_user_is_enough(tmp_path):
    tables = small(tmp_path, users=1)
    assert len(tables["users"]) == 1
    assert len(tables["log"]) >= FEWEST_INTERACTIONS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 0}, "`users` must be at least 1. Received: 0"),
        ({"interactions": 3}, "`interactions` must be from 10 to 120"),
        ({"interactions": 1000}, "`interactions` must be from 10 to 120"),
        ({"seed": -1}, "`seed` must not be negative"),
        ({"taste_strength": -1.0}, "`taste_strength` must be a number, not negative"),
        ({"appeal_strength": float("inf")}, "`appeal_strength` must be a number, not negative"),
        ({"noise": float("nan")}, "`noise` must be a number, not negative"),
        ({"genre_share": 1.5}, "`genre_share` is a fraction from 0 to 1"),
        ({"user": 5}, "Did you mean `users`"),
        ({"faults": {"redundancy": 0.1}}, "Did you mean `redundant`"),
        ({"faults": {"redundant": 2}}, "`redundant` is a share of the chunks"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(SimulateConfig, {"output": "nowhere", **changes}, source="demo.yaml")


def test_flags_of_the_command_line():
    parser = argparse.ArgumentParser()
    add_flags(parser, SimulateConfig)
    given = parser.parse_args(["--output", "out", "--users", "7", "--faults", "{redundant: 0.1}"])
    config = from_flags(SimulateConfig, given)
    assert config == SimulateConfig(output="out", users=7, faults=FaultShares(redundant=0.1))


def test_prepare_reads_the_data_by_the_demo_configuration(tmp_path):
    text = DEMO.read_text(encoding="utf-8")
    demo = yaml.safe_load(text.replace("${work}", str(tmp_path)))
    assert "simulated" in demo["notice"]
    settings = {**demo["simulate"], "output": str(tmp_path / "simulated"), "users": 60}
    simulate(from_mapping(SimulateConfig, settings, source="demo.yaml"))
    settings = {**demo["prepare"], "output": str(tmp_path / "prepared")}
    prepared = prepare(from_mapping(PrepareConfig, settings, source="demo.yaml"))
    assert 30 <= prepared["cold_items"] <= 36  # 15 % of the films that are shown
    schema = DatasetSchema.load(tmp_path / "prepared")
    assert {feature.name: (feature.kind, feature.entity) for feature in schema.features} == {
        "film_id": ("categorical", "film"),
        "genres": ("multi", None),
        "year": ("numeric", None),
        "country": ("categorical", None),
        "age_band": ("categorical", None),
        "region": ("categorical", None),
        "history_film_id": ("sequence", "film"),
        "history_click": ("sequence", None),
    }
    assert schema.feature("history_film_id").vocabulary == "film_id"
    test = pd.read_parquet(tmp_path / "prepared" / "test.parquet")
    assert test["item_is_cold"].any()
    assert test["genres"].map(len).min() >= 1
    assert test["country"].ne("").all()
