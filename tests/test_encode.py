"""The job `encode`: from tables in every format to a store, stopped at any point, on any kind of bad input."""

import dataclasses
import gzip
import json
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sentence_transformers")

import small_encoder as small
from sentence_transformers import SentenceTransformer

from kser_tf.errors import ConfigError, DataError, FileError
from kser_tf.files import exclusive_lock
from kser_tf.knowledge_store import KnowledgeStore
from kser_tf.pipelines import encode as encode_module
from kser_tf.pipelines.chunking import split_into_passages
from kser_tf.pipelines.config import from_mapping
from kser_tf.pipelines.encode import EncodeConfig, encode, encode_further, encode_inputs, read_passages
from kser_tf.pipelines.job import read_job
from kser_tf.pipelines.projection import Projection, SecondMoment

STORY = {
    7: "A lighthouse keeper finds a letter in a bottle. It is addressed to him. He has an hour to answer it.",
    3: "Zwei Brüder erben ein Kino, z.B. mit kaputtem Projektor. Sie öffnen es trotzdem!",
    12: "雨の夜、探偵は古い駅に着く。待合室には誰もいない。時計だけが動いている。",
    5: "क्या वह लौटेगा? गाँव इंतज़ार करता है।",
}
CRAFT = {
    7: "Shot in one take.",
    3: None,
    12: "Shot in one take.",
    5: "  \n ",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.save_encoder(tmp_path_factory.mktemp("encoders") / "small")


@pytest.fixture(scope="module")
def plain(model):
    """What sentence-transformers itself makes of a text."""
    transformer = SentenceTransformer(str(model), device="cpu")
    return lambda text: transformer.encode(text, normalize_embeddings=True)


@pytest.fixture
def films():
    return pd.DataFrame({"film": list(STORY), "story": list(STORY.values()), "craft": list(CRAFT.values())})


@pytest.fixture
def make(tmp_path, model):
    """A configuration with the small encoder, of a table that is written for it."""

    def make_config(table, name="films.parquet", **changes):
        path = tmp_path / name
        if isinstance(table, pd.DataFrame):
            table.to_parquet(path)
        elif isinstance(table, str):
            path.write_text(table, encoding="utf-8")
        elif isinstance(table, list):
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        values = {
            "table": str(path),
            "output": str(tmp_path / "store"),
            "id_column": "film",
            "fields": ["story", "craft"],
            "encoder": str(model),
            "dtype": "float32",
            "speed": "exact",
            **changes,
        }
        return from_mapping(EncodeConfig, values, source="test")

    return make_config


def nothing_left(tmp_path):
    return not (tmp_path / "store").exists() and not [path for path in tmp_path.iterdir() if path.name[0] == "."]


# What the store holds


def test_store_holds_the_vectors_of_the_passages(films, make, plain):
    result = encode(make(films))
    store = KnowledgeStore.open(result_path(make, films))
    assert store.ids.tolist() == [7, 3, 12, 5]
    assert store.fields == ("story", "craft")
    assert store.chunks_per_field == 3
    assert store.mask.tolist() == [
        [[True, True, True], [True, False, False]],
        [[True, True, False], [False, False, False]],
        [[True, True, True], [True, False, False]],
        [[True, True, False], [False, False, False]],
    ]
    for row, text in enumerate(STORY.values()):
        for place, passage in enumerate(split_into_passages(text, 3)):
            np.testing.assert_allclose(store.vectors[row, 0, place], plain(passage), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(store.vectors[0, 1, 0], plain("Shot in one take."), rtol=1e-5, atol=1e-6)
    assert result["coverage"] == {"story": 1.0, "craft": 0.5}
    assert (result["entities"], result["chunks"], result["width"]) == (4, 12, small.WIDTH)


def result_path(make, films):
    return make(films).output


def test_equal_texts_are_encoded_once(films, make, monkeypatch):
    encoded = []
    original = encode_module.TextEncoder.encode

    def encode_and_note(self, texts, **options):
        encoded.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(encode_module.TextEncoder, "encode", encode_and_note)
    result = encode(make(films))
    assert encoded.count("Shot in one take.") == 1
    assert len(encoded) == len(set(encoded)) == result["unique_texts"] == 11
    store = KnowledgeStore.open(make(films).output)
    np.testing.assert_array_equal(store.vectors[0, 1, 0], store.vectors[2, 1, 0])


def test_the_default_encoder_and_int8(tmp_path):
    table = tmp_path / "films.csv"
    table.write_text(
        "film,story\nalien,A crew wakes up far from Earth and answers a call. Something comes aboard.\n"
        "soup,A cook opens a small kitchen in Lyon and burns the first soup.\n"
        "mars,Astronauts are stranded on another planet and must get home.\n"
    )
    output = tmp_path / "store"
    result = encode(EncodeConfig(table=str(table), output=str(output), id_column="film", fields=["story"]))
    store = KnowledgeStore.open(output)
    assert (store.dtype, store.width, store.id_dtype) == ("int8", 384, "string")
    assert store.manifest["encoder"] == "all-MiniLM-L6-v2"
    assert len(store.manifest["encoder_fingerprint"]) == 64
    vectors, mask = store.lookup(["alien", "soup", "mars", "nobody"])
    assert mask[:, 0].sum(axis=1).tolist() == [2, 1, 1, 0]
    alien, soup, mars = vectors[0, 0, 0], vectors[1, 0, 0], vectors[2, 0, 0]
    assert alien @ mars > alien @ soup + 0.1
    assert result["backend"]["mean_cosine"] >= 0.995
    assert result["texts_per_second"] > 0


# Formats and ids


def test_all_formats_give_the_same_store(films, make, tmp_path):
    rows = films.to_dict("records")
    rows[1].pop("craft")  # a key that is missing is a text that is missing
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows)
    csv_text = films.to_csv(index=False)
    (tmp_path / "films.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "parts").mkdir()
    films[:2].to_parquet(tmp_path / "parts" / "1.parquet")
    films[["craft", "film", "story"]][2:].to_csv(tmp_path / "parts" / "2.csv", index=False)
    tables = {
        "films.parquet": films,
        "films.csv": "\ufeff" + csv_text.replace("\n", "\r\n"),
        "films.tsv": films.to_csv(index=False, sep="\t"),
        "films.jsonl": lines,
        "films.jsonl.gz": None,
    }
    stores = []
    for name, table in tables.items():
        config = make(table, name, output=str(tmp_path / f"store-{name}"))
        encode(config)
        stores.append(KnowledgeStore.open(config.output))
    # The white space of a text is in the rows of Parquet and CSV alike; so is everything else.
    for store in stores[1:]:
        assert store.ids.tolist() == [7, 3, 12, 5]
        np.testing.assert_array_equal(store.vectors, stores[0].vectors)
        np.testing.assert_array_equal(store.mask, stores[0].mask)
    with pytest.raises(DataError, match=r"`film` is '12', but 7 in .*1\.parquet, row 1: ids must be all integers"):
        read_passages(make(None, "parts"))
    mixed = read_passages(make(None, "parts", id_dtype="int64"))
    assert mixed.ids.tolist() == [7, 3, 12, 5]


def test_one_row_a_chunk_is_taken_as_given(make, plain):
    rows = [
        {"film": "b", "aspect": "craft", "text": "Grainy  film. Long takes."},
        {"film": "a", "aspect": "story", "text": "One."},
        {"film": "b", "aspect": "story", "text": "Two."},
        {"film": "b", "aspect": "craft", "text": None},
        {"film": "a", "aspect": "story", "text": "Three."},
        {"film": "b", "aspect": "craft", "text": "One."},
        {"film": "c", "aspect": "craft", "text": ""},
    ]
    columns = {"fields": None, "field_column": "aspect", "text_column": "text"}
    result = encode(make(rows, "films.jsonl", **columns))
    store = KnowledgeStore.open(make(None, "films.jsonl").output)
    assert store.ids.tolist() == ["b", "a", "c"]
    assert store.fields == ("craft", "story")
    assert store.chunks_per_field == 2
    assert store.mask.tolist() == [
        [[True, True], [True, False]],
        [[False, False], [True, True]],
        [[False, False], [False, False]],
    ]
    np.testing.assert_allclose(store.vectors[0, 0, 0], plain("Grainy film. Long takes."), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(store.vectors[1, 1, 1], plain("Three."), rtol=1e-5, atol=1e-6)
    assert result["unique_texts"] == 4

    passages = read_passages(make(None, "films.jsonl", **columns | {"fields": ["story"]}, chunks_per_field=4))
    assert passages.fields == ("story",)
    assert passages.texts == ["One.", "Two.", "Three."]
    assert passages.places.tolist() == [[[1, -1, -1, -1]], [[0, 2, -1, -1]], [[-1, -1, -1, -1]]]


def test_new_entities_of_one_row_a_chunk_may_lack_a_field(make, plain, tmp_path):
    """The fields are the store's; of an entity that is new, there may be a story and nothing on its craft."""
    columns = {"fields": None, "field_column": "aspect", "text_column": "text"}
    rows = [{"film": "a", "aspect": aspect, "text": "One."} for aspect in ("story", "craft")]
    encode(make(rows, "films.jsonl", **columns))
    new = make([{"film": "b", "aspect": "craft", "text": "Two."}], "new.jsonl", **columns).table
    result = encode_further(tmp_path / "store", new, tmp_path / "further")
    store = KnowledgeStore.open(result["store"])
    assert (store.ids.tolist(), store.fields) == (["a", "b"], ("story", "craft"))
    assert store.mask.tolist() == [[[True], [True]], [[False], [True]]]
    np.testing.assert_allclose(store.vectors[1, 1, 0], plain("Two."), rtol=1e-5, atol=1e-6)
    # A table of other fields altogether is another table.
    other = make([{"film": "c", "aspect": "crafts", "text": "Two."}], "other.jsonl", **columns).table
    with pytest.raises(DataError, match=r"no chunk in `aspect` is of the field 'story'. There are: crafts"):
        encode_further(tmp_path / "store", other, tmp_path / "again")


@pytest.mark.parametrize(
    ("cells", "id_dtype", "expected"),
    [
        (["1", "20", "-3"], None, [1, 20, -3]),
        (["1", "20", "-3"], "string", ["1", "20", "-3"]),
        (["007", "7", "70"], None, ["007", "7", "70"]),  # numbers would make one of two
        (["1.0", "2", "3"], None, ["1.0", "2", "3"]),
        (["NA", "北京", "tt 1"], None, ["NA", "北京", "tt 1"]),  # NA is Namibia
        (["9223372036854775807", "0", "5"], None, [2**63 - 1, 0, 5]),
    ],
)
def test_ids_of_a_csv(make, cells, id_dtype, expected):
    text = "film,story\n" + "".join(f"{cell},Some text.\n" for cell in cells)
    passages = read_passages(make(text, "films.csv", fields=["story"], id_dtype=id_dtype))
    assert passages.ids.tolist() == expected
    assert passages.ids.dtype == (np.int64 if isinstance(expected[0], int) else object)


def test_ids_of_other_tables_are_what_they_are(make):
    digits = pd.DataFrame({"film": ["10", "11"], "story": ["A.", "B."]})
    assert read_passages(make(digits, fields=["story"])).ids.tolist() == ["10", "11"]
    assert read_passages(make(digits, fields=["story"], id_dtype="int64")).ids.tolist() == [10, 11]
    small_numbers = digits.astype({"film": np.int16})
    assert read_passages(make(small_numbers, fields=["story"])).ids.tolist() == [10, 11]
    assert read_passages(make(small_numbers, fields=["story"], id_dtype="string")).ids.tolist() == ["10", "11"]


# Bad input


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        ("film,Story\n1,a\n", "t.csv", r"t\.csv: no column is called `story`. Did you mean `Story`"),
        ("film,plot,actors\n1,a,b\n", "t.csv", r"no column is called `story`.*film, plot, actors"),
        ("film,story,story\n1,a,b\n", "t.csv", r"2 columns are called `story`"),
        ('{"film": 1, "storey": "x"}\n', "t.jsonl", r"no column is called `story`. Did you mean `storey`"),
        (pd.DataFrame({"film": [1], "Story": ["a"]}), "t.parquet", r"no column is called `story`"),
        (pd.DataFrame({"film": [1], "story": [7]}), "t.parquet", r"`story` holds int64; expected text"),
        (pd.DataFrame({"film": [1], "story": [["a", "b"]]}), "t.parquet", r"`story` holds list<.*expected text"),
        ('{"film": 1, "story": 1984}\n', "t.jsonl", r"t\.jsonl, row 1: `story` is 1984, a int; expected text"),
        ('{"film": 1, "story": {"en": "x"}}\n', "t.jsonl", r"a dict; expected text"),
        ("film,story\n1,a\n,b\n", "t.csv", r"t\.csv, row 3: `film`, the id, is missing"),
        (
            pd.DataFrame({"film": [1, None], "story": ["a", "b"]}),
            "t.parquet",
            r"row 1: .*is 1\.0, a float; expected an",
        ),
        (pd.DataFrame({"film": ["x", None], "story": ["a", "b"]}), "t.parquet", r"row 2: `film`, the id, is missing"),
        ('{"film": true, "story": "x"}\n', "t.jsonl", r"is True, a bool; expected an integer or a string"),
        ('{"film": [1], "story": "x"}\n', "t.jsonl", r"is \[1\], a list; expected an integer or a string"),
        ('{"film": 1, "story": "x"}\n{"film": "2", "story": "x"}\n', "t.jsonl", r"row 2: `film` is '2', but 1 in"),
        ('{"film": 1, "story": "x"\n', "t.jsonl", r"t\.jsonl, row 1: not valid JSON"),
        ('[{"film": 1, "story": "x"}]\n', "t.json", r"row 1: a JSON list; expected one JSON object on each line"),
        ("film,story\n1,a,b\n", "t.csv", r"t\.csv, row 2: 3 cells; expected 2"),
        ('film,story\n1,"a\n', "t.csv", r"t\.csv, row 2: not valid CSV"),
        ("film,story\n", "t.csv", r"t\.csv: the table has no row"),
        ("", "t.csv", r"t\.csv: no column is called `film`"),
        ("", "t.jsonl", r"t\.jsonl: the table has no row"),
        ("", "t.parquet", r"t\.parquet: cannot be read"),
        ("PAR1", "t.xlsx", r"t\.xlsx: not a known format"),
        ("film,story\n1,a\n5,b\n1,c\n1,d\n", "t.csv", r"more than once are 1 \(.*t\.csv, row 2 and .*t\.csv, row 4\)"),
    ],
)
def test_bad_tables(make, tmp_path, table, name, message):
    with pytest.raises(DataError, match=message):
        encode(make(table, name, fields=["story"]))
    assert nothing_left(tmp_path)


def test_many_repeated_ids_are_not_all_named(make):
    table = pd.DataFrame({"film": [*range(8), *range(8)], "story": ["a"] * 16})
    with pytest.raises(DataError, match=r"4 \(.*row 5 and .*row 13\), and 3 more\. Remove the repeated rows"):
        read_passages(make(table, fields=["story"]))


def test_text_that_is_not_utf8(make, tmp_path):
    (tmp_path / "t.csv").write_bytes("film,story\n1,Müller\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv: not UTF-8 at byte \d+. Save the table as UTF-8"):
        read_passages(make(None, "t.csv", fields=["story"]))


def test_a_table_that_is_not_there(make, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file or folder"):
        encode(make(None, "nowhere.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder holds no Parquet, CSV or JSON lines file"):
        encode(make(None, "empty"))


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["1", "x"], "row 3: `film` is 'x'; expected an integer"), (["1", str(2**63)], "which int64 cannot hold")],
)
def test_ids_that_are_no_int64(make, ids, message):
    with pytest.raises(DataError, match=message):
        read_passages(
            make("film,story\n" + "".join(f"{i},a\n" for i in ids), "t.csv", fields=["story"], id_dtype="int64")
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks_per_field": 1}, r"the id 'a' has 2 chunks of the field 'story', but `chunks_per_field` is 1"),
        ({"fields": ["storey"]}, r"no chunk in `aspect` is of the field 'storey'. Did you mean 'story'\?"),
    ],
)
def test_chunk_rows_that_do_not_fit(make, changes, message):
    rows = [{"film": "a", "aspect": "story", "text": text} for text in ("One.", "Two.")]
    with pytest.raises(DataError, match=message):
        encode(make(rows, "t.jsonl", **{"fields": None, "field_column": "aspect", "text_column": "text", **changes}))


def test_a_chunk_without_a_field(make):
    rows = [{"film": "a", "aspect": "story", "text": "x"}, {"film": "a", "aspect": "", "text": "x"}]
    with pytest.raises(DataError, match=r"t\.jsonl, row 2: `aspect`, the field's name, is missing"):
        read_passages(make(rows, "t.jsonl", fields=None, field_column="aspect", text_column="text"))


def test_texts_of_every_size(make, plain):
    texts = ["", " \t", None, float("nan"), "?", "雨", "\u200b", "x" * 1_000_000, "Word and word. " * 70_000]
    table = pd.DataFrame({"film": range(len(texts)), "story": pd.Series(texts, dtype=object)})
    result = encode(make(table, fields=["story"]))
    store = KnowledgeStore.open(make(table).output)
    assert store.mask[:, 0].sum(axis=1).tolist() == [0, 0, 0, 0, 1, 1, 0, 3, 3]
    np.testing.assert_allclose(store.vectors[5, 0, 0], plain("雨"), rtol=1e-5, atol=1e-6)
    # The encoder reads 64 tokens, here bytes.
    np.testing.assert_allclose(store.vectors[7, 0, 0], plain("x" * 64), rtol=1e-5, atol=1e-6)
    assert result["cut_texts"] == len({text for passages in map(long_passages, texts[7:]) for text in passages})


def long_passages(text):
    return [passage[:100_000] for passage in split_into_passages(text, 3)]


def test_missing_texts_of_a_csv(make):
    cells = ["", "NaN", "nan", "NULL", "N/A", '"  "', "None of them", "0"]
    text = "film,story\n" + "".join(f"{number},{cell}\n" for number, cell in enumerate(cells))
    assert read_passages(make(text, "t.csv", fields=["story"])).texts == ["None of them", "0"]


def test_a_cell_of_a_csv_may_be_long_and_hold_anything(make):
    story = 'He said "no, never".\nThen he left; quietly, ' + "far " * 20_000
    table = pd.DataFrame({"film": [1], "story": [story]})
    passages = read_passages(make(table.to_csv(index=False), "t.csv", fields=["story"], chunks_per_field=2))
    assert "".join(passages.texts).replace(" ", "") == story.replace("\n", "").replace(" ", "")


def test_a_table_without_any_text(make, caplog):
    table = pd.DataFrame({"film": [1, 2], "story": [None, None]})
    result = encode(make(table, fields=["story"]))
    store = KnowledgeStore.open(make(table).output)
    assert (len(store), store.width, result["unique_texts"]) == (2, small.WIDTH, 0)
    assert not store.mask.any()
    assert "no text in story: the store holds no chunk" in caplog.text


def test_texts_that_the_encoder_makes_nothing_of_are_no_chunks(make, tmp_path):
    table = pd.DataFrame({"film": [1, 2, 3], "story": ["red", "blue", "green red"]})
    encode(make(table, fields=["story"], encoder=str(small.save_static_encoder(tmp_path / "static"))))
    assert KnowledgeStore.open(make(table).output).mask[:, 0, 0].tolist() == [True, False, True]


def test_nan_of_an_encoder_leaves_no_store(films, make, monkeypatch, tmp_path):
    monkeypatch.setattr(
        encode_module.TextEncoder,
        "_encode_batch",
        lambda self, texts: np.full((len(texts), small.WIDTH), np.inf),
    )
    with pytest.raises(DataError, match=r"gives NaN or infinity for 11 texts; the first begins 'A lighthouse"):
        encode(make(films))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encodr": "x"}, r"`encodr` is not a known key. Did you mean `encoder`\?"),
        ({"dtype": "int4"}, "`dtype`"),
        ({"fields": None}, "`fields` is missing"),
        ({"fields": []}, "`fields` is missing"),
        ({"fields": ["story", "story"]}, "`fields` names a field more than once"),
        ({"fields": ["film"]}, "must be different columns"),
        ({"field_column": "aspect"}, "`field_column` and `text_column` go together"),
        ({"field_column": "text", "text_column": "text"}, "must be different columns"),
        ({"chunks_per_field": 0}, r"`chunks_per_field` must be at least 1. Received: 0"),
        ({"dimensions": 0}, "`dimensions` must be at least 1"),
        ({"texts_per_shard": -1}, "`texts_per_shard` must be at least 1"),
        ({"language": "English"}, "`language` must be an ISO 639 code"),
        ({"output": ""}, "`output` is empty"),
    ],
)
def test_bad_configurations(make, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(None, **changes)


# The job's folder


def test_job_json_and_an_unchanged_job(films, make, monkeypatch):
    config = make(films)
    result = encode(config)
    job = read_job(config.output)
    assert job["job"] == "encode"
    assert job["result"] == result
    assert job["inputs"] == encode_inputs(config)
    assert result["backend"] == {
        "backend": "float32",
        "reason": "as asked for",
        "checked_texts": 0,
        "mean_cosine": 1.0,
        "lowest_cosine": 1.0,
    }
    assert not Path(f"{config.output}.partial").exists()
    with monkeypatch.context() as patched:
        patched.setattr(encode_module, "TextEncoder", None)  # not needed
        assert encode(config) == result


@pytest.mark.parametrize("name", ["vectors.npy", "projection.npy"])
def test_a_damaged_store_is_not_taken_for_complete(films, make, name):
    config = make(films, dimensions=4)
    encode(config)
    file = Path(config.output) / name
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    encode(config)
    assert file.read_bytes() == before
    file.unlink()
    encode(config)
    assert file.read_bytes() == before


def test_shards_that_a_killed_job_left_beside_its_store_are_removed(films, make, monkeypatch):
    config = make(films)
    with monkeypatch.context() as patched:
        patched.setattr(encode_module, "_remove_shards", lambda folder: None)
        encode(config)
    partial = Path(f"{config.output}.partial")
    assert partial.is_dir()
    encode(config)
    assert not partial.exists()


def test_changed_input_replaces_the_store(films, make):
    first = encode(make(films))
    films.loc[0, "craft"] = "Shot on film."
    second = encode(make(films))
    assert second["unique_texts"] == first["unique_texts"] + 1
    assert len(KnowledgeStore.open(make(films).output)) == 4
    assert encode(make(films[:2]))["entities"] == 2


def test_a_folder_of_something_else_is_left_alone(films, make, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("do not lose")
    with pytest.raises(ConfigError, match="holds something that `encode` did not write"):
        encode(make(films))
    assert (tmp_path / "store" / "thesis.txt").read_text() == "do not lose"
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("do not lose")
    with pytest.raises(ConfigError, match=r"other\.partial is in the way"):
        encode(make(films, output=str(tmp_path / "other")))
    assert (tmp_path / "other.partial" / "thesis.txt").read_text() == "do not lose"


def test_projection(make, tmp_path):
    rng = np.random.default_rng(5)
    words = ["sea", "ship", "storm", "crew", "map", "gold", "fear", "home", "letter", "bridge", "winter", "song"]
    table = pd.DataFrame({"film": range(60), "story": [" ".join(rng.choice(words, 6)) for _ in range(60)]})
    encode(make(table, fields=["story"], output=str(tmp_path / "whole")))
    whole = KnowledgeStore.open(tmp_path / "whole")
    result = encode(make(table, fields=["story"], dimensions=8, texts_per_shard=7))
    store = KnowledgeStore.open(make(table).output)  # the projection's file does not disturb its check
    assert store.width == 8

    # Reference: the leading right singular vectors of the unique texts' vectors, in float64.
    vectors = whole.vectors[:, 0, 0].astype(np.float64)
    _, first = np.unique(table["story"], return_index=True)
    _, values, components = np.linalg.svd(vectors[first], full_matrices=False)
    matrix = Projection.load(store.path).matrix
    assert Projection.load(whole.path) is None
    assert matrix.shape == (small.WIDTH, 8)
    np.testing.assert_allclose(np.abs(components[:8] @ matrix), np.eye(8), rtol=1e-5, atol=1e-3)
    expected = vectors @ matrix
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(store.vectors[:, 0, 0], expected, rtol=1e-5, atol=1e-5)
    report = result["projection"]
    assert report["explained_variance"] == pytest.approx((values[:8] ** 2).sum() / (values**2).sum(), rel=1e-5)
    pairs = np.triu_indices(len(first), k=1)
    unique = np.sort(first)
    before, after = ((v @ v.T)[pairs] for v in (vectors[unique], expected[unique]))
    assert report["mean_cosine_change"] == pytest.approx(np.abs(before - after).mean(), rel=1e-3)
    assert report["cosine_correlation"] == pytest.approx(np.corrcoef(before, after)[0, 1], rel=1e-3)
    assert report["compared_texts"] == len(first)


def test_projection_of_too_many_dimensions(films, make, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module.TextEncoder, "encode", None)  # told before anything is encoded
    with pytest.raises(ConfigError, match=r"below the encoder's width, which is 32. Received: 32"):
        encode(make(films, dimensions=32))
    assert nothing_left(tmp_path)


def test_projection_of_no_text_and_of_one():
    moment = SecondMoment(4)
    assert moment.projection(2)[1] == 1.0
    moment.add(np.array([[0.0, -1, 0, 0]], dtype=np.float32))
    projection, explained = moment.projection(1)
    assert explained == pytest.approx(1)
    np.testing.assert_allclose(projection.matrix, [[0], [1], [0], [0]], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(projection(np.array([[0, 2, 0, 0], [1, 0, 0, 0]], np.float32)), [[1], [0]])


# Stopped in the middle

SLOW = """
import sys, time
from kser_tf.pipelines import encode as module
from kser_tf.pipelines.config import from_mapping, read_yaml

original = module.TextEncoder.encode

def slowly(self, texts, **options):
    encoded = original(self, texts, **options)
    time.sleep(0.5)
    return encoded

module.TextEncoder.encode = slowly
module.encode(from_mapping(module.EncodeConfig, read_yaml(sys.argv[1]), source="test"))
"""


@pytest.fixture
def many():
    return pd.DataFrame(
        {
            "film": [f"f{number}" for number in range(40)],
            "story": [f"Part {number} begins at night. {'It rains. ' * (number % 7)}" for number in range(40)],
            "craft": [f"Take {number % 5} was kept." for number in range(40)],
        }
    )


def store_bytes(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "job.json"}


def test_killed_and_run_again(many, make, tmp_path):
    options = {"texts_per_shard": 8, "tokens_per_batch": 128, "speed": "auto", "dtype": "int8", "dimensions": 16}
    encode(make(many, output=str(tmp_path / "uninterrupted"), **options))

    config = make(many, **options)
    settings = tmp_path / "config.yaml"
    settings.write_text(json.dumps({key: getattr(config, key) for key in config.__dataclass_fields__}))
    partial = Path(f"{config.output}.partial")
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(settings)])
    try:
        deadline = time.monotonic() + 120
        while len(list(partial.glob("*.npy"))) < 3:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(FileError, match="store is locked: another process is writing there"):
            encode(config)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = len(list(partial.glob("*.npy")))
    assert not Path(config.output).exists()

    result = encode(config)
    assert result["encoded_texts"] == result["unique_texts"] - 8 * finished > 0
    assert store_bytes(config.output) == store_bytes(tmp_path / "uninterrupted")
    assert not partial.exists()


def test_a_complete_store_asks_for_no_lock(films, make):
    """Two runs of one configuration that begin at the same moment both find it."""
    config = make(films)
    result = encode(config)
    output = Path(config.output)
    with exclusive_lock(output.with_name(f".{output.name}.encode.lock")):
        assert encode(config) == result
        # Left by a job that was killed at the very end; somebody else is at work, who removes it or needs it.
        partial = Path(f"{config.output}.partial")
        partial.mkdir()
        (partial / encode_module._PLAN_FILE).write_text("{}")
        assert encode(config) == result
        assert partial.is_dir()
        with pytest.raises(FileError, match="is locked"):
            encode(dataclasses.replace(config, dtype="float16"))
    assert encode(config) == result
    assert not partial.exists()


def test_a_store_that_was_completed_while_we_waited_for_the_lock(films, make, monkeypatch):
    config = make(films)
    result = encode(config)
    answers = iter([None, result])
    monkeypatch.setattr(encode_module, "_what_is_done", lambda *_: next(answers))
    monkeypatch.setattr(encode_module, "read_passages", lambda *_: pytest.fail("encoded again"))
    assert encode(config) == result


def break_off(config, monkeypatch, shards):
    """Runs the job as far as so many shards, and interrupts it."""
    original, calls = encode_module.TextEncoder.encode, []

    def encode_some(self, texts, **options):
        if len(calls) == shards:
            raise KeyboardInterrupt
        calls.append(texts)
        return original(self, texts, **options)

    with monkeypatch.context() as patched:
        patched.setattr(encode_module.TextEncoder, "encode", encode_some)
        with pytest.raises(KeyboardInterrupt):
            encode(config)


@pytest.mark.parametrize("change", ["text", "encoder", "batch", "shard", "none", "damage", "dimensions"])
def test_only_what_is_still_true_is_kept(many, make, monkeypatch, tmp_path, change):
    config = make(many, texts_per_shard=8)
    break_off(config, monkeypatch, shards=3)
    partial = Path(f"{config.output}.partial")
    assert len(list(partial.glob("*.npy"))) == 3
    changes, kept = {}, 0
    if change == "text":
        many.loc[20, "story"] = "Something else."
    elif change == "encoder":
        changes = {"encoder": str(small.save_encoder(tmp_path / "another", seed=1))}
    elif change == "batch":
        changes = {"tokens_per_batch": 64}
    elif change == "shard":
        changes = {"texts_per_shard": 16}
    elif change == "damage":
        file = sorted(partial.glob("*.npy"))[1]
        file.write_bytes(file.read_bytes()[:-9])
        kept = 16
    else:
        changes = {"dimensions": 4} if change == "dimensions" else {}
        kept = 24
    result = encode(make(many, **{"texts_per_shard": 8, **changes}))
    assert result["unique_texts"] - result["encoded_texts"] == kept
    fresh = make(many, output=str(tmp_path / "fresh"), **{"texts_per_shard": 8, **changes})
    encode(fresh)
    assert store_bytes(config.output) == store_bytes(fresh.output)


@contextmanager
def largest_file(size):
    """Writing beyond `size` fails as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_what_is_finished(many, make, monkeypatch, tmp_path):
    config = make(many, texts_per_shard=40)  # 45 unique texts: shards of 40 and of 5
    original = encode_module._Shards.write

    def write_until_full(self, path, encoded):
        size = 1 << 30 if path.name.startswith("000000") else 500
        with largest_file(size):
            original(self, path, encoded)

    with monkeypatch.context() as patched:
        patched.setattr(encode_module._Shards, "write", write_until_full)
        with pytest.raises(
            FileError, match=r"store\.partial: cannot be written.*with 40 of \d+ texts.*run the job again"
        ):
            encode(config)
    assert nothing_left(tmp_path)
    assert sorted(path.name for path in (tmp_path / "store.partial").iterdir()) == ["000000.npy", "plan.json"]

    # Room for the shards, not for the store.
    with (
        largest_file(8000),
        pytest.raises(FileError, match=r"store: the store cannot be written, the disk is full\. All texts"),
    ):
        encode(config)
    assert nothing_left(tmp_path)
    result = encode(config)
    assert result["encoded_texts"] == 0
    assert result["texts_per_second"] is None
    KnowledgeStore.open(config.output, verify=True)
