"""`kser-tf inspect`: on what weights hang, who is near whom, where knowledge hurts, and the page that says so."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import small_world as world
from page_reader import Reader

from kser_tf import KnowledgeStore, cli
from kser_tf.errors import ConfigError, DataError
from kser_tf.metrics import log_loss_from_logits, paired_difference
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.encode import EncodeConfig, encode
from kser_tf.pipelines.inspect import InspectConfig, gains, inspect, spaces, weights
from kser_tf.pipelines.names import NameTable

# --- on what the weights hang


def test_rank_correlation_by_hand():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: centred -1.5, 0, 0, 1.5 and -1.5, -0.5, 0.5, 1.5.
    expected = 4.5 / np.sqrt(4.5 * 5)
    assert weights.spearman(np.array([0.1, 7, 7, 9]), np.array([1, 2, 30, 400])) == pytest.approx(expected)
    assert weights.spearman(np.array([1, 2, 3]), np.array([9, 4, -2])) == pytest.approx(-1)
    assert weights.spearman(np.array([1, 2, 3]), np.array([5, 5, 5])) is None


def test_what_place_explains_by_hand():
    # Two places: 1, 1, 3 and 3; the mean is 2. One chunk that is not there would change everything.
    found = np.array([[[1.0, 3.0]], [[1.0, 3.0]], [[99.0, 99.0]]], np.float32)
    mask = np.array([[[1, 1]], [[1, 1]], [[0, 0]]], bool)
    assert weights.share_explained_by_place(found, mask) == pytest.approx(1)
    # Within each place -1 and +1 beside means of 1 and 3: between 1, within 1.
    found[:2] = [[[0.0, 2.0]], [[2.0, 4.0]]]
    assert weights.share_explained_by_place(found, mask) == pytest.approx(0.5)
    assert weights.share_explained_by_place(np.ones_like(found), mask) is None


# --- spaces


def neighbours_by_hand(similarity, among, k):
    """Sets of the nearest, one pair at a time; `None` where there are not enough."""
    found = {}
    for i in np.flatnonzero(among):
        others = [j for j in np.flatnonzero(among) if j != i and np.isfinite(similarity[i, j])]
        found[i] = set(sorted(others, key=lambda j: -similarity[i, j])[:k]) if len(others) >= k else None
    return found


def cosines(vectors):
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in vectors] for a in vectors])


def test_neighbours_and_agreement_against_one_pair_at_a_time(rng, monkeypatch):
    monkeypatch.setattr(spaces, "_ROWS_AT_ONCE", 7)
    count, k = 30, 4
    vectors = {"one": rng.normal(size=(count, 5)), "other": rng.normal(size=(count, 3))}
    vectors["one"][4] = 0  # points nowhere
    present = rng.random(count) < 0.8
    found = {"one": spaces.VectorSpace(vectors["one"]), "other": spaces.VectorSpace(vectors["other"], present)}
    groups = {"even": np.arange(count) % 2 == 0, "nobody": np.zeros(count, bool)}
    among = present & (np.arange(count) != 4)
    with np.errstate(invalid="ignore"):
        sets = {name: neighbours_by_hand(cosines(of), among, k) for name, of in vectors.items()}
    near = spaces.nearest(found["one"], among, k)
    assert {i: set(near[i]) for i in np.flatnonzero(among)} == sets["one"]
    assert (near[~among] == -1).all()
    shared = [len(sets["one"][i] & sets["other"][i]) / k for i in np.flatnonzero(among) if i % 2 == 0]
    even, nobody = spaces.agreements(found, groups, k)
    assert even["overlap"] == pytest.approx(np.mean(shared))
    assert even["standard_error"] == pytest.approx(np.std(shared, ddof=1) / np.sqrt(len(shared)))
    assert (even["first"], even["second"], even["items"]) == ("one", "other", len(shared))
    assert even["by_chance"] == pytest.approx(k / (among.sum() - 1))
    assert (nobody["overlap"], nobody["items"]) == (None, 0)


def test_a_space_agrees_with_itself_and_with_nothing_by_chance(rng):
    vectors = [rng.normal(size=(400, 8)) for _ in range(2)]
    found = {"a": spaces.VectorSpace(vectors[0]), "b": spaces.VectorSpace(3 * vectors[0])}
    found["c"] = spaces.VectorSpace(vectors[1])
    same, other, _ = spaces.agreements(found, {"all": np.ones(400, bool)}, 10)
    assert same["overlap"] == 1
    assert abs(other["overlap"] - other["by_chance"]) < 4 * other["standard_error"]


def test_too_few_items_have_no_neighbours():
    space = spaces.VectorSpace(np.eye(3))
    assert (spaces.nearest(space, np.ones(3, bool), 3) == -1).all()
    assert (spaces.nearest(space, np.ones(3, bool), 2) >= 0).all()


def test_co_rated_items_against_sets_of_users(rng, monkeypatch):
    monkeypatch.setattr(spaces, "_USERS_AT_ONCE", 3)
    users = np.array([f"u{i}" for i in rng.integers(0, 20, 90)], object)
    items = rng.integers(-1, 8, 90)  # some likes of items that are not compared, some items liked twice by a user
    likes = [{user for user, item in zip(users, items, strict=True) if item == i} for i in range(9)]
    expected = np.full((9, 9), -np.inf)
    for a, b in itertools.product(range(9), repeat=2):
        if len(likes[a] & likes[b]) >= 5:
            expected[a, b] = len(likes[a] & likes[b]) / np.sqrt(len(likes[a]) * len(likes[b]))
    space = spaces.CoRatedSpace(items, users, 9, least_common=5)
    np.testing.assert_allclose(space.similarities(np.arange(9)), expected, rtol=1e-6)
    assert space.present.tolist() == [True] * 8 + [False]  # nobody likes the last
    assert not np.isinf(expected[:8, :8]).all()
    assert np.isinf(expected[:8, :8]).any()


def test_no_likes_at_all():
    space = spaces.CoRatedSpace(np.zeros(0, int), np.zeros(0, object), 4, least_common=1)
    assert not space.present.any()
    assert (spaces.nearest(space, space.present, 1) == -1).all()


# --- where knowledge helps and hurts


def test_row_losses_are_log_losses(rng):
    labels, logits = rng.integers(0, 2, 50), rng.normal(0, 3, 50)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = -np.log(np.where(labels == 1, probabilities, 1 - probabilities))
    np.testing.assert_allclose(gains.row_losses(labels, logits), expected)
    assert gains.row_losses(np.array([0, 1]), np.array([1000.0, -1000.0])).tolist() == [1000, 1000]


def test_differences_of_groups_with_one_row_a_user_are_paired(rng):
    groups, base, model = rng.integers(-1, 3, 60), rng.random(60), rng.random(60)
    found = gains.differences_by_group(groups, np.arange(60), base, model)
    assert found.index.tolist() == [0, 1, 2]
    for group, row in found.iterrows():
        rows = groups == group
        expected = paired_difference(model[rows], base[rows])
        assert row["rows"] == row["users"] == rows.sum()
        for key in ("difference", "low", "high"):
            assert row[key] == pytest.approx(expected[key])
        assert (row["base"], row["model"]) == pytest.approx((base[rows].mean(), model[rows].mean()))


def test_a_users_further_rows_make_nothing_surer(rng):
    base, model, users = rng.random(20), rng.random(20), np.array([f"u{i}" for i in range(20)], object)
    once = gains.differences_by_group(np.zeros(20, int), users, base, model)
    thrice = gains.differences_by_group(np.zeros(60, int), *(np.tile(of, 3) for of in (users, base, model)))
    for key in ("difference", "low", "high", "users"):
        assert thrice[key].item() == pytest.approx(once[key].item())
    assert thrice["rows"].item() == 60


def test_users_of_unequal_weight_by_hand():
    # Differences: user a 1 and 3, user b 0. Mean 4/3; residuals 4 - 8/3 and 0 - 4/3; t of one degree of freedom is 12.7062.
    found = gains.differences_by_group(
        np.zeros(3, int), np.array(["a", "a", "b"]), np.zeros(3), np.array([1.0, 3.0, 0.0])
    )
    half_width = 12.7062 * np.sqrt(2 / 1 * 2 * (4 / 3) ** 2) / 3
    assert found["difference"].item() == pytest.approx(4 / 3)
    assert found["high"].item() - found["difference"].item() == pytest.approx(half_width, rel=1e-5)


def test_one_user_has_no_interval():
    found = gains.differences_by_group(np.zeros(2, int), np.array(["a", "a"]), np.zeros(2), np.ones(2))
    assert np.isnan(found["low"].item())
    assert gains.count_worse(found, 1)["surely_worse"] == 0


def test_what_is_listed_and_counted():
    figures = pd.DataFrame(
        {
            "users": [50, 50, 50, 50, 5],
            "difference": [0.3, 0.2, 0.1, -0.2, 9.0],
            "low": [0.01, 0.15, -0.1, -0.3, 8.0],
            "high": [0.6, 0.25, 0.3, -0.1, 10.0],
            "error": [0.145, 0.025, 0.1, 0.05, 0.5],
        },
        index=["wild", "sure", "unsure", "better", "small"],
    )
    assert gains.most_sure(figures, 30, 9, worse=True).index.tolist() == ["sure", "wild"]
    assert gains.most_sure(figures, 30, 1, worse=True).index.tolist() == ["sure"]
    assert gains.most_sure(figures, 30, 9, worse=False).index.tolist() == ["better"]
    assert gains.count_worse(figures, 30) == {
        "groups": 4,
        "too_small": 1,
        "worse": 3,
        "better": 1,
        "surely_worse": 2,
        "surely_better": 1,
        "by_chance": pytest.approx(0.1),
        # Of four comparisons: 98.75 %, at 49 degrees of freedom 2.59 errors: 0.376, 0.065, 0.26 and 0.13.
        "worse_of_all": 1,
        "better_of_all": 1,
    }


# --- names


def test_names(tmp_path):
    table = pd.DataFrame({"id": ["007", "8", "9"], "name": ["Bond", "<b>Acht</b>", None]})
    table.to_csv(tmp_path / "names.csv", index=False)
    names = NameTable(table=str(tmp_path / "names.csv"), id_column="id", name_column="name")
    assert names.read() == {"007": "Bond", "8": "<b>Acht</b>"}
    pd.DataFrame({"id": [7], "name": ["Seven"]}).to_parquet(tmp_path / "names.parquet")
    assert NameTable(table=str(tmp_path / "names.parquet"), id_column="id", name_column="name").read() == {"7": "Seven"}
    with pytest.raises(DataError, match=r"names.csv has no column 'title'. There are: id, name"):
        NameTable(table=str(tmp_path / "names.csv"), id_column="id", name_column="title").read()
    with pytest.raises(DataError, match=r"no such file. It is to hold the names"):
        NameTable(table=str(tmp_path / "no.csv"), id_column="id", name_column="title").read()


# --- the job, on the small world


def save(folder, prepared, store=None, *, seed, shuffle=None, **config):
    """A model with random weights, as `train` leaves one."""
    from kser_tf import RankingModel
    from kser_tf.models.config import RankingModelConfig
    from kser_tf.models.model_folder import WEIGHTS_FILE, StoreReference, save_model
    from kser_tf.schema import DatasetSchema

    references = {} if store is None else {"item": StoreReference.to(store, shuffle_seed=shuffle)}
    stores = {entity: reference.open() for entity, reference in references.items()}
    model = RankingModel(
        DatasetSchema.load(prepared), RankingModelConfig(embedding_width=4, hidden_units=(8,), **config), stores
    )
    model.make_weights()
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    model.adapt(stores)
    save_model(folder, model, references)
    model.save_weights(folder / WEIGHTS_FILE)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return world.make_prepared(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Texts about the items, of which one has none."""
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    rows = [
        {"id": item, "a": f"<i>Film</i> {i} & more. " * (1 + i % 3), "b": "Warm." if i % 2 else "Cold."}
        for i, item in enumerate(world.ITEMS)
        if item != world.WITHOUT_KNOWLEDGE
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory, table):
    pytest.importorskip("sentence_transformers")
    from small_encoder import save_encoder

    folder = tmp_path_factory.mktemp("store")
    config = EncodeConfig(
        table=str(table),
        output=str(folder / "item"),
        id_column="id",
        fields=["a", "b"],
        chunks_per_field=2,
        encoder=str(save_encoder(folder / "encoder")),
        dtype="float32",
        speed="exact",
    )
    encode(config)
    return folder / "item"


@pytest.fixture(scope="module")
def base(tmp_path_factory, prepared):
    return save(tmp_path_factory.mktemp("base"), prepared, seed=1)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "names.csv"
    pd.DataFrame({"id": world.ITEMS, "title": [f"<Title> {i}" for i in range(len(world.ITEMS))]}).to_csv(
        path, index=False
    )
    return {"item": NameTable(table=str(path), id_column="id", name_column="title")}


@pytest.fixture(scope="module")
def looked(tmp_path_factory, prepared, store, base, names):
    """A look inside a model with ESFNet, with everything there is to see."""
    model = save(tmp_path_factory.mktemp("model"), prepared, store, seed=2)
    config = InspectConfig(
        model=str(model),
        base=str(base),
        prepared=str(prepared),
        output=str(tmp_path_factory.mktemp("look") / "inside"),
        names=names,
        neighbours=3,
        least_common_users=2,
        least_users=5,
    )
    return config, inspect(config)


def found_by(config):
    return json.loads((config.folder / "inspect.json").read_text(encoding="utf-8"))


def page_of(config):
    return (config.folder / "inspect.html").read_text(encoding="utf-8")


pytestmark = pytest.mark.tfrs


def test_weights_are_those_of_the_model(looked, store):
    from kser_tf.models.model_folder import load_model

    config, _ = looked
    found, opened, model = found_by(config), KnowledgeStore.open(store), load_model(config.model)
    rows = np.arange(len(opened), dtype=np.int32)
    of_chunks, mask = model.embedding.chunk_weights("item", rows).numpy(), opened.mask
    for i, field in enumerate(found["weights"]["fields"]):
        values = of_chunks[:, i][mask[:, i]]
        assert field["field"] == ("a", "b")[i]
        assert (field["mean"], field["deviation"]) == pytest.approx((values.mean(), values.std()), rel=1e-5)
        assert field["below"] == pytest.approx(np.mean([weight < 0.5 for weight in values]))
        assert field["above"] == pytest.approx(np.mean([weight > 1.5 for weight in values]))
    lowest = np.unravel_index(np.where(mask, of_chunks, np.inf).argmin(), mask.shape)
    first = found["filtered"][0]
    assert first["id"] == opened.ids[lowest[0]]
    assert first["name"] == f"<Title> {world.ITEMS.index(first['id'])}"
    assert first["weight"] == pytest.approx(float(of_chunks[lowest]), rel=1e-6)
    number = world.ITEMS.index(first["id"])
    assert first["text"] in (
        (f"<i>Film</i> {number} & more. " * (1 + number % 3)) if first["field"] == "a" else ("Warm.", "Cold.")
    )


def test_associations_with_length_and_popularity(looked, store, prepared):
    from kser_tf.models.model_folder import load_model
    from kser_tf.pipelines.encode import read_passages
    from kser_tf.pipelines.job import read_job

    config, _ = looked
    found = {(each["field"], each["with"]): each for each in found_by(config)["associations"]}
    opened, model = KnowledgeStore.open(store), load_model(config.model)
    of_chunks = model.embedding.chunk_weights("item", np.arange(len(opened), dtype=np.int32)).numpy()
    passages = read_passages(EncodeConfig(**read_job(store)["config"]))
    train = pd.read_parquet(prepared / "train.parquet")["item"].value_counts().to_dict()
    rows = [
        (of_chunks[place], len(passages.texts[passages.places[place]].split()), train.get(opened.ids[place[0]], 0))
        for place in map(tuple, np.argwhere(opened.mask))
        if place[1] == 0
    ]
    expected = pd.DataFrame(rows).corr("spearman")
    assert found["a", "words"]["correlation"] == pytest.approx(expected[0][1])
    assert found["a", "training_rows"]["correlation"] == pytest.approx(expected[0][2])
    assert found["a", "words"]["chunks"] == len(rows)
    assert found["b", "words"]["correlation"] is None  # all of one word
    assert found[None, "cosine_to_catalogue"]["chunks"] == opened.mask.sum()


def test_spaces_are_of_the_items_with_knowledge(looked, prepared):
    found = found_by(looked[0])["spaces"]
    train, test = (pd.read_parquet(prepared / f"{name}.parquet") for name in ("train", "test"))
    known = (set(train["item"]) | set(test["item"])) - {world.WITHOUT_KNOWLEDGE}
    cold = known - set(train["item"])
    assert (found["items"]["all"], found["items"]["cold"]) == (len(known), len(cold))
    assert cold
    by_pair = {(each["first"], each["second"], each["group"]): each for each in found["agreements"]}
    assert len(by_pair) == 15 * 4
    # What the model adds to an id does not hang on whether it is known; what the base has learned does.
    assert by_pair["text", "aligned", "cold"]["items"] == len(cold)
    assert by_pair["text", "base_ids", "cold"]["items"] == 0
    assert by_pair["text", "co_rated_in_training", "cold"]["items"] == 0
    assert by_pair["text", "base_ids", "all"]["by_chance"] == pytest.approx(3 / (len(known - cold) - 1))


def test_text_and_likes_agree_as_far_as_the_tables_say(looked, prepared, store):
    found = {
        (each["first"], each["second"], each["group"]): each for each in found_by(looked[0])["spaces"]["agreements"]
    }
    train = pd.read_parquet(prepared / "train.parquet")
    items = sorted(set(train["item"][train["label"] == 1]) - {world.WITHOUT_KNOWLEDGE})
    chunks, mask = KnowledgeStore.open(store).lookup(np.array(items, object))
    text = cosines([of[there].mean(0) for of, there in zip(chunks, mask, strict=True)])
    users = [set(train["user"][(train["item"] == item) & (train["label"] == 1)]) for item in items]
    likes = np.array(
        [[len(a & b) / np.sqrt(len(a) * len(b)) if len(a & b) >= 2 else -np.inf for a in users] for b in users]
    )
    near = [neighbours_by_hand(of, np.ones(len(items), bool), 3) for of in (text, likes)]
    shared = [len(near[0][i] & near[1][i]) / 3 for i in range(len(items)) if near[0][i] and near[1][i]]
    pair = found["text", "co_rated_in_training", "all"]
    assert pair["items"] == len(shared) > 5
    # Ties between likes may be broken either way.
    assert pair["overlap"] == pytest.approx(np.mean(shared), abs=0.1)


def test_losses_are_those_of_the_two_models(looked, prepared):
    from kser_tf.models.model_folder import load_model
    from kser_tf.pipelines.examples import raw_features

    config, _ = looked
    found, test = found_by(config)["gains"], pd.read_parquet(prepared / "test.parquet")
    raw = next(raw_features(prepared / "test.parquet", load_model(config.base).schema.features, len(test)))
    logits = {key: load_model(getattr(config, key)).serve(raw)["logit"].numpy() for key in ("model", "base")}
    entries = {("slice", each["name"]): each for each in found["slices"]}
    entries |= {(each["feature"], each["name"]): each for each in found["all"]}
    title = f"<Title> {world.ITEMS.index(test['item'][0])}"
    chosen = {
        ("slice", "all"): np.ones(len(test), bool),
        ("slice", "cold"): test["item_is_cold"].to_numpy(),
        ("item", title): (test["item"] == test["item"][0]).to_numpy(),
        ("place", "app"): (test["place"] == "app").to_numpy(),
        ("tags", "red"): test["tags"].map(lambda tags: "red" in tags).to_numpy(),
    }
    for key, rows in chosen.items():
        entry = entries[key]
        assert (entry["rows"], entry["users"]) == (rows.sum(), test["user"][rows].nunique())
        for name in ("model", "base"):
            assert entry[name] == pytest.approx(log_loss_from_logits(test["label"][rows], logits[name][rows]), rel=1e-5)
        assert entry["difference"] == pytest.approx(entry["model"] - entry["base"])
    assert {each["feature"] for each in found["all"]} == {"item", "place", "tags"}
    # Nobody's place is missing from the count of places, and "" is no place.
    assert {each["name"] for each in found["all"] if each["feature"] == "place"} == {"web", "app"}
    items = next(kind for kind in found["kinds"] if kind["feature"] == "item")
    assert items["groups"] + items["too_small"] == test["item"].nunique()


def test_the_page(looked):
    config, result = looked
    page = page_of(config)
    root = Reader(page).root
    assert [node.attributes["id"] for node in root.all("section")] == ["weights", "examples", "spaces", "gains"]
    assert not root.all("script")
    assert not root.all("link")
    assert "<i>Film" not in page  # what stands in texts and names is text
    assert "<Title>" not in page
    assert "&lt;Title&gt;" in page
    found = found_by(config)
    figures = root.figures()
    for value in (
        found["weights"]["fields"][0]["mean"],
        found["associations"][0]["correlation"],
        next(each["overlap"] for each in found["spaces"]["agreements"] if each["overlap"] is not None),
        found["gains"]["slices"][0]["difference"],
    ):
        assert value in figures
    said = root.all("ul", **{"class": "summary"})[0].text()
    assert all(sentence in said for sentence in result["summary"])
    overall = found["gains"]["slices"][0]
    assert f"{overall['base']:.4f} without knowledge, {overall['model']:.4f} with it" in said


def test_what_is_done_is_not_done_again(looked):
    config, result = looked
    before = (config.folder / "job.json").stat().st_mtime_ns
    assert inspect(config) == result
    assert (config.folder / "job.json").stat().st_mtime_ns == before


def test_a_model_without_esf_net_and_without_a_base(prepared, store, tmp_path, capsys):
    """Further fields of knowledge take the place of what is added; nothing weighs the chunks."""
    model = save(tmp_path / "model", prepared, store, seed=3, adaptor="mlp")
    assert cli.main(["inspect", "--model", str(model), "--prepared", str(prepared), "--neighbours", "3"]) == 0
    config = InspectConfig(model=str(model), prepared=str(prepared))
    assert json.loads(capsys.readouterr().out)["page"] == str(model / "inspect" / "inspect.html")
    found, root = found_by(config), Reader(page_of(config)).root
    assert "the adaptor mlp does not weigh chunks" in root.text()
    assert "No base was given" in root.text()
    assert [node.attributes["id"] for node in root.all("section")] == ["spaces"]
    assert found["gains"] is None
    assert {each["first"] for each in found["spaces"]["agreements"]} == {
        "text",
        "aligned",
        "embedding",
        "co_rated_in_training",
    }


def test_profiles_of_the_users_side_are_a_space_too(prepared, store, base, tmp_path):
    from kser_tf.models.model_folder import load_model

    model = save(tmp_path / "model", prepared, store, seed=5, user_knowledge="preferences")
    config = InspectConfig(model=str(model), base=str(base), prepared=str(prepared), neighbours=3)
    inspect(config)
    (pair,) = (
        each
        for each in found_by(config)["spaces"]["agreements"]
        if (each["first"], each["second"], each["group"]) == ("text", "profiles", "all")
    )
    profiles = load_model(model).embedding.entity_profiles["item"]
    center, directions = (weight.astype(np.float64) for weight in profiles.get_weights())
    rows = [pd.read_parquet(prepared / f"{part}.parquet")["item"] for part in ("train", "test")]
    items = sorted(set(pd.concat(rows)) - {world.WITHOUT_KNOWLEDGE})
    chunks, mask = KnowledgeStore.open(store).lookup(np.array(items, object))
    text = [of[there].mean(0) for of, there in zip(chunks, mask, strict=True)]
    seen = [
        sum(((of[f][there[f]] - center).sum(0) / there.sum()) @ directions[f] for f in range(len(of)))
        for of, there in zip(chunks, mask, strict=True)
    ]
    near = [neighbours_by_hand(cosines(of), np.ones(len(items), bool), 3) for of in (text, seen)]
    shared = [len(near[0][i] & near[1][i]) / 3 for i in range(len(items))]
    assert pair["items"] == len(items)
    assert pair["overlap"] == pytest.approx(np.mean(shared), abs=0.01)
    assert pair["overlap"] < 0.99


def test_a_placebo_shows_no_text(prepared, store, base, tmp_path):
    model = save(tmp_path / "model", prepared, store, seed=4, shuffle=7)
    config = InspectConfig(model=str(model), base=str(base), prepared=str(prepared), neighbours=3, most_items=12)
    inspect(config)
    found = found_by(config)
    assert {each["text"] for each in found["filtered"]} == {""}
    assert "words" not in {each["with"] for each in found["associations"]}
    assert "a placebo" in page_of(config)
    assert found["spaces"]["items"]["all"] == 12
    assert found["spaces"]["sampled_from"] > 12


def test_texts_that_are_others_now_are_not_shown(prepared, store, table, tmp_path):
    model = save(tmp_path / "model", prepared, store, seed=4)
    was = table.read_text(encoding="utf-8")
    try:
        table.write_text(was.replace("Warm.", "Hot."), encoding="utf-8")
        config = InspectConfig(model=str(model), prepared=str(prepared), neighbours=3, output=str(tmp_path / "other"))
        inspect(config)
        assert "holds other texts now than those that were encoded" in page_of(config)
        assert {each["text"] for each in found_by(config)["kept"]} == {""}
        table.unlink()
        config = InspectConfig(model=str(model), prepared=str(prepared), neighbours=3, output=str(tmp_path / "gone"))
        inspect(config)
        assert "The texts about each item are not at hand" in page_of(config)
    finally:
        table.write_text(was, encoding="utf-8")


def test_what_cannot_be_looked_into(looked, prepared, base, store, names, tmp_path):
    config, _ = looked
    with pytest.raises(ConfigError, match=r"has no knowledge, so there is nothing to look into. Give it as `base`"):
        inspect(InspectConfig(model=str(base), prepared=str(prepared), output=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match=r"no feature names such entities"):
        inspect(
            InspectConfig(
                model=config.model,
                prepared=str(prepared),
                output=str(tmp_path / "out"),
                names={"film": names["item"]},
            )
        )
    with pytest.raises(ConfigError, match="holds something that `inspect` did not write"):
        inspect(InspectConfig(model=config.model, prepared=str(prepared), output=str(base)))
    with pytest.raises(ConfigError, match=r"`neighbours` must be at least 1. Received: 0"):
        from_mapping(InspectConfig, {"model": "m", "prepared": "p", "neighbours": 0}, source="test")
    assert not (tmp_path / "out").exists()


def test_another_data_set_is_refused(looked, tmp_path):
    from kser_tf.pipelines.prepare import PrepareConfig, prepare

    values = {
        "output": str(tmp_path / "prepared"),
        "data": str(world.write_log(tmp_path)),
        "schema": {**world.SCHEMA, "features": world.SCHEMA["features"][3:]},
    }
    prepare(from_mapping(PrepareConfig, values, source="test"))
    config, _ = looked
    with pytest.raises(DataError, match="was trained on other features or vocabularies than"):
        inspect(InspectConfig(model=config.model, prepared=values["output"], output=str(tmp_path / "out")))
