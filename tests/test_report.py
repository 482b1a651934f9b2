import copy
import json
import math
import re
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import Node, Reader

from kser_tf.errors import DataError, MissingExtraError
from kser_tf.pipelines import report_figures, report_tables
from kser_tf.pipelines.report import REPORT_HTML, REPORT_JSON, require_report_extra, text_summary, write_report

DASH = report_tables.MISSING  # what stands where there is no figure

# --- a small report


def metrics(auc, cold_auc):
    rest = {"positives": 40, "gauc": auc - 0.01, "log_loss": 0.61, "calibration_error": 0.0123456}
    return {"all": {"rows": 1200, "auc": auc, **rest}, "cold": {"rows": 100, "auc": cold_auc, **rest}}


def run(variant, seed, auc, cold_auc, backbone="din"):
    return {
        "name": f"{backbone}/{variant}/seed-{seed}",
        "backbone": backbone,
        "variant": variant,
        "seed": seed,
        "metrics": metrics(auc, cold_auc),
        "curve": [
            {"epoch": 1, "loss": 0.6, "val_loss": 0.61, "val_auc": auc - 0.05},
            {"epoch": 2, "loss": 0.5, "val_loss": 0.58, "val_auc": auc},
        ],
        "trained_parameters": 1000,
        "total_parameters": 1500,
        "seconds": 90.0,
        "rows_per_second": 84000.0,
        "best_epoch": 2,
        "popularity": [
            {"low": 0, "high": 1, "rows": 100, "auc": cold_auc},
            {"low": 1, "high": 10, "rows": 0, "auc": None},
            {"low": 10, "high": None, "rows": 1100, "auc": auc},
        ],
        "calibration": [
            {"predicted": 0.2, "observed": 0.25, "rows": 600},
            {"predicted": 0.7, "observed": 0.68, "rows": 600},
        ],
    }


def comparison(variant, slice_name, difference, low, high, metric="auc"):
    return {
        "backbone": "din",
        "variant": variant,
        "against": "base",
        "slice": slice_name,
        "metric": metric,
        "difference": difference,
        "low": low,
        "high": high,
        "how": "t interval over 2 seeds",
        "seeds": 2,
    }


def example(weight, fault=None, **changes):
    return {
        "entity": "movie",
        "id": 17,
        "name": "The Ledger",
        "field": "story",
        "position": 0,
        "weight": weight,
        "text": "A diver looks for a ship.",
        "fault": fault,
        **changes,
    }


def make_report(**changes):
    report = {
        "title": "A run",
        "summary": ["Knowledge helps on cold items.", "Shuffled knowledge does not."],
        "notice": "The clicks are simulated.",
        "data": {
            "splits": {"train": {"rows": 8000, "positives": 2000}, "test": {"rows": 1200, "positives": 300}},
            "protocol": {"label": "rating > 3", "cold_share": 0.15},
            "features": [{"name": "movie_id", "kind": "categorical", "dtype": "int64", "length": None}],
        },
        "store": {
            "movie": {
                "rows": 3883,
                "fields": ["story", "craft"],
                "width": 384,
                "dtype": "int8",
                "coverage": {"story": 1.0, "craft": 0.75},
                "bytes": 14_123_456,
            }
        },
        "runs": [
            run("base", 1, 0.70, 0.60),
            run("base", 2, 0.72, 0.62),
            run("all_parameters", 1, 0.71, 0.64),
            run("all_parameters", 2, 0.7302, 0.66),
        ],
        "comparisons": [
            comparison("all_parameters", "all", 0.0101, -0.002, 0.0221),
            comparison("all_parameters", "cold", 0.04, 0.0399, 0.0401),
            comparison("all_parameters", "all", -0.02, -0.03, -0.01, metric="log_loss"),
        ],
        "weights": {
            "fields": [
                {
                    "entity": "movie",
                    "field": field,
                    "mean": mean,
                    "quantiles": {"0.05": 0.1, "0.25": 0.5, "0.5": 1.1, "0.75": 1.3, "0.95": 1.7},
                    "edges": [0.0, 1.0, 2.0],
                    "counts": [30, 50],
                }
                for field, mean in (("story", 1.21), ("craft", 0.83))
            ],
            "chunks": [
                {"entity": "movie", "field": "story", "position": 0, "mean": 1.25, "count": 40},
                {"entity": "movie", "field": "story", "position": 1, "mean": 1.17, "count": 40},
                {"entity": "movie", "field": "craft", "position": 0, "mean": 0.84, "count": 40},
            ],
            "run": "din/all_parameters/seed-1",
        },
        "filtered": [example(0.012, fault="hallucination")],
        "kept": [example(1.87)],
        "faults": {
            "auc": 0.9312,
            "good_mean_weight": 1.2,
            "kinds": {"hallucination": {"auc": 0.95, "mean_weight": 0.3, "chunks": 40}},
            "run": "din/all_parameters/seed-1",
        },
        "export": {"path": "serving/1", "bytes": 987_654, "version": 1},
        "check": {"ok": True, "checks": [{"name": "loads", "ok": True, "detail": "0.8 s"}]},
        "steps": [
            {"job": "prepare", "seconds": 12.3, "skipped": False},
            {"job": "encode", "seconds": 0.1, "skipped": True},
        ],
        "versions": {"tensorflow": "2.21.0"},
        "command": "kser-tf run demo.yaml",
        "finished": "2025-01-15T10:12:00Z",
    }
    return {**copy.deepcopy(report), **changes}


# --- reading the page


def written(folder, report):
    """Writes a report; returns the page as a tree, and the JSON file's content."""
    page = write_report(folder, report)
    assert page == folder / REPORT_HTML
    return Reader(page.read_text(encoding="utf-8")).root, read_strictly(folder / REPORT_JSON)


def read_strictly(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def section(page, identifier):
    (found,) = page.all("section", id=identifier)
    return found


def table(node, caption=None):
    """A table as lists of cells, the head first."""
    for candidate in node.all("table"):
        if caption is None or [c.text() for c in candidate.all("caption")] == [caption]:
            return [[c for c in row.children if isinstance(c, Node)] for row in candidate.all("tr")]
    raise AssertionError(f"no table {caption!r}")


def numbers_in(value):
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers_in(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers_in(item)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), make_report())


# --- tests


class TestFigures:
    def test_json_holds_what_was_given_and_the_means(self, full):
        _, figures = full
        means = figures["means"]
        assert {**figures, "means": None} == {**make_report(), "means": None}
        assert {
            "backbone": "din",
            "variant": "all_parameters",
            "slice": "all",
            "metric": "auc",
            "mean": pytest.approx(0.7201),
            "standard_deviation": pytest.approx(0.0202 / math.sqrt(2)),  # of two: their distance by sqrt(2)
            "seeds": 2,
        } in means

    def test_every_figure_of_the_page_is_in_the_json(self, full):
        page, figures = full
        shares = [split["positives"] / split["rows"] for split in figures["data"]["splits"].values()]
        known = {*numbers_in(figures), *shares}
        shown = page.figures()
        assert len(shown) > 100
        assert [value for value in shown if value not in known] == []

    def test_what_is_read_is_the_rounded_figure(self, full):
        page, _ = full
        read = 0
        for node in page.all("data"):
            text = node.text().replace("\N{MINUS SIGN}", "-").replace(",", "")
            if re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
                digits = len(text.partition(".")[2])
                assert float(text) == pytest.approx(float(node.attributes["value"]), abs=0.5001 * 10**-digits)
                read += 1
        assert read > 100

    def test_first_table(self, full):
        page, _ = full
        head, base, ours = table(section(page, "results"), "DIN")
        assert [cell.text() for cell in head] == ["AUC", "All rows1,200 rows", "Cold items100 rows"]
        assert [cell.text().strip() for cell in base] == ["base2 seeds", "0.7100", "0.6100"]
        assert ours[1].figures() == [pytest.approx(0.7201), 0.0101, -0.002, 0.0221]
        assert ours[2].figures() == [pytest.approx(0.65), 0.04, 0.0399, 0.0401]
        assert ours[2].text().split() == ["0.6500+0.0400[+0.0399,", "+0.0401]"]

    def test_colour_only_where_the_interval_excludes_zero(self, full):
        page, _ = full
        _, _, ours = table(section(page, "results"), "DIN")
        assert [cell.all("span")[0].attributes["class"].split() for cell in ours[1:]] == [
            ["difference"],
            ["difference", "better"],
        ]

    @pytest.mark.parametrize(
        ("metric", "low", "high", "expected"),
        [
            ("auc", 0.001, 0.002, "better"),
            ("auc", -0.002, -0.001, "worse"),
            ("auc", -0.001, 0.002, ""),
            ("auc", 0.0, 0.002, ""),
            ("auc", None, None, ""),
            ("log_loss", -0.002, -0.001, "better"),
            ("calibration_error", 0.001, 0.002, "worse"),
        ],
    )
    def test_tone(self, metric, low, high, expected):
        assert report_figures.tone({"metric": metric, "low": low, "high": high}) == expected

    def test_all_metrics(self, full):
        page, figures = full
        rows = table(section(page, "metrics"), "GAUC")
        means = {(m["variant"], m["slice"]): m for m in figures["means"] if m["metric"] == "gauc"}
        for row, variant in zip(rows[1:], ("base", "all_parameters"), strict=True):
            for cell, name in zip(row[1:], ("all", "cold"), strict=True):
                mean = means[variant, name]
                assert cell.figures() == [mean["mean"], mean["standard_deviation"]]

    def test_weights_by_place(self, full):
        page, _ = full
        rows = table(section(page, "weights"), "Mean weight by the chunk's place in its field")
        assert [[cell.text().strip() for cell in row] for row in rows] == [
            ["Field", "Chunk 1", "Chunk 2"],
            ["movie · story", "1.250", "1.170"],
            ["movie · craft", "0.840", DASH],
        ]

    def test_faults(self, full):
        page, _ = full
        assert "In 93.1 % of all pairs" in section(page, "faults").text()
        assert [[cell.text().strip() for cell in row] for row in table(section(page, "faults"))[1:]] == [
            ["good chunks", "1.200", DASH, DASH],
            ["hallucination", "0.300", "0.9500", "40"],
        ]

    def test_what_is_not_a_number_is_null_and_a_dash(self, tmp_path):
        report = make_report()
        for of_run in report["runs"][:2]:
            of_run["metrics"]["cold"]["auc"] = math.nan
            of_run["curve"][1]["val_loss"] = math.inf
        report["comparisons"][1].update(difference=math.nan, low=math.nan, high=math.nan)
        page, figures = written(tmp_path, report)
        assert figures["runs"][0]["metrics"]["cold"]["auc"] is None
        assert figures["runs"][0]["curve"][1]["val_loss"] is None
        _, base, ours = table(section(page, "results"), "DIN")
        assert base[2].text().strip() == DASH
        assert ours[2].text().strip() == "0.6500"

    def test_numpy_numbers(self, tmp_path):
        report = make_report()
        report["runs"][0]["metrics"]["all"]["auc"] = np.float32(0.75)
        report["runs"][0]["best_epoch"] = np.int64(2)
        report["check"]["ok"] = np.bool_(True)
        report["weights"]["fields"][0]["counts"] = np.array([30, 50])
        _, figures = written(tmp_path, report)
        assert figures["runs"][0]["metrics"]["all"]["auc"] == 0.75
        assert figures["weights"]["fields"][0]["counts"] == [30, 50]
        assert figures["check"]["ok"] is True

    def test_equal_figures_give_equal_files(self, tmp_path):
        first, second = (write_report(tmp_path / name, make_report()).read_bytes() for name in "ab")
        assert first == second


class TestPage:
    def test_nothing_from_outside(self, full):
        page, _ = full
        allowed = {
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "main",
            "header",
            "nav",
            "section",
            "footer",
            "article",
        }
        allowed |= {
            "h1",
            "h2",
            "h3",
            "p",
            "ul",
            "li",
            "dl",
            "dt",
            "dd",
            "div",
            "span",
            "small",
            "b",
            "bdi",
            "a",
            "pre",
            "data",
        }
        allowed |= {
            "table",
            "caption",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "details",
            "summary",
            "figure",
            "figcaption",
        }
        allowed |= {"svg", "g", "defs", "path", "use", "text", "clippath", "rect"}
        assert {node.tag for node in page.all()} <= allowed
        for node in page.all():
            assert not {"src", "srcset", "action", "xmlns:xlink"} & node.attributes.keys()
            assert not [name for name in node.attributes if name.startswith("on")]
            assert node.attributes.get("href", "#").startswith("#")
            assert all(
                target.startswith("#")
                for value in node.attributes.values()
                for target in re.findall(r"url\((.)", value)
            )
        (style,) = page.all("style")
        assert "url(" not in style.text()
        assert "@import" not in style.text()

    def test_no_address_at_all(self, tmp_path):
        assert "http" not in write_report(tmp_path, make_report()).read_text(encoding="utf-8")

    def test_ids_are_unique_and_found(self, full):
        page, _ = full
        ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
        assert len(ids) == len(set(ids))
        used = [
            target
            for node in page.all()
            for v in node.attributes.values()
            for target in re.findall(r"^#(.+)|url\(#(.+?)\)", v)
        ]
        assert len(used) > 50
        assert {first or second for first, second in used} <= set(ids)

    def test_plots_follow_the_page_s_colours(self, full):
        page, _ = full
        style = page.all("style")[0].text()
        used = {
            v
            for svg in page.all("svg")
            for n in svg.all()
            for v in re.findall(r"var\((--[\w-]+)\)", n.attributes.get("style", ""))
        }
        assert {"--series-0", "--series-1", "--ink", "--line"} <= used
        assert all(style.count(f"{name}:") == 2 for name in used), "each is defined for light and for dark"
        left = [
            c
            for svg in page.all("svg")
            for n in svg.all()
            for c in re.findall(r"#\w{6}\b", n.attributes.get("style", ""))
        ]
        assert left == []

    def test_every_plot_says_what_it_shows(self, full):
        page, _ = full
        plots = page.all("svg")
        alts = [plot.attributes["aria-label"] for plot in plots]
        assert all(plot.attributes["role"] == "img" for plot in plots)
        assert len(set(alts)) == len(alts) == 8  # differences, popularity twice, calibration, three curves, weights
        assert "base: 0.6100 at 0, 0.7100 at 10+; all parameters: 0.6500 at 0, 0.7201 at 10+." in alts[1]
        assert "all parameters: +0.0400 at 0, +0.0101 at 10+." in alts[2]
        assert "base: from \N{MINUS SIGN}0.0200 to +0.0500" in alts[3]
        assert "base: 0.6600 after epoch 1, 0.7100 after epoch 2; all parameters: 0.6701" in alts[4]

    def test_many_runs(self, tmp_path):
        variants = ["base", *(f"variant_{i}" for i in range(9))]
        report = make_report(
            runs=[
                run(v, seed, 0.7 + 0.01 * seed, 0.6, backbone)
                for backbone in ("din", "other")
                for v in variants
                for seed in range(5)
            ]
        )
        page, _ = written(tmp_path, report)
        assert [len(table(section(page, "results"), name)) for name in ("DIN", "other")] == [11, 11]
        assert "variant 8" in page.all("ul", **{"class": "legend"})[0].text()

    def test_seeds_that_stop_at_different_epochs(self, tmp_path):
        report = make_report()
        report["runs"][0]["curve"].append({"epoch": 3, "loss": 0.4, "val_loss": 0.6, "val_auc": 0.99})
        page, _ = written(tmp_path, report)
        (alt,) = [
            svg.attributes["aria-label"]
            for svg in page.all("svg")
            if "AUC on validation" in svg.attributes["aria-label"]
        ]
        assert "after epoch 3" not in alt

    def test_long_texts_and_lists_are_cut_on_the_page_alone(self, tmp_path):
        report = make_report(kept=[example(1.5, text="word " * 200_000) for _ in range(30)])
        page, figures = written(tmp_path, report)
        texts = [article.all("p")[0].text() for article in section(page, "examples").all("article")]
        assert len(texts) == 1 + report_tables.EXAMPLES_SHOWN
        assert max(map(len, texts)) <= 400
        assert texts[-1].endswith("word…")
        assert len(figures["kept"]) == 30
        assert figures["kept"][0]["text"] == "word " * 200_000

    def test_a_failed_check_is_plain(self, tmp_path):
        results = {"loads": True, "agrees": False, "warm-up": None}
        checks = [{"name": name, "ok": ok, "detail": "why"} for name, ok in results.items()]
        check = {"ok": False, "checks": checks, "measurements": {"rows_per_second": {"1": 250.0, "7": 1500.0}}}
        page, _ = written(tmp_path, make_report(runs=[], check=check))
        serving = section(page, "serving")
        assert "FAILED (1 passed, 1 failed, 1 could not be looked at)" in serving.text()
        assert [[cell.text().strip() for cell in row] for row in table(serving)[1:]] == [
            ["loads", "passed ✓", "why"],
            ["agrees", "failed ✗", "why"],
            ["warm-up", "could not be looked at", "why"],
        ]
        assert "1: 250.0; 7: 1500.0" in serving.text()


class TestMissingParts:
    sections = (
        ("results", ("runs",)),
        ("metrics", ("runs",)),
        ("popularity", ("runs",)),
        ("calibration", ("runs",)),
        ("training", ("runs",)),
        ("weights", ("weights",)),
        ("faults", ("faults",)),
        ("examples", ("filtered", "kept")),
        ("data", ("data", "store")),
        ("serving", ("export", "check")),
        ("run", ("steps", "versions", "command")),
    )

    @pytest.mark.parametrize("nothing", ["missing", "none", "empty"])
    @pytest.mark.parametrize("part", sorted({part for _, parts in sections for part in parts} - {"runs"}))
    def test_one_part_missing(self, part, nothing, tmp_path):
        report = make_report()
        # Without runs there is nothing to plot, and the test is quick.
        report["runs"] = []
        if nothing == "missing":
            del report[part]
        else:
            report[part] = None if nothing == "none" else type(report[part])()
        page, _ = written(tmp_path, report)
        here = {node.attributes["id"] for node in page.all("section")}
        assert here == {name for name, parts in self.sections if "runs" not in parts and set(parts) - {part}}
        assert [a.attributes["href"][1:] for a in page.all("nav")[0].all("a")] == [
            n for n, _ in self.sections if n in here
        ]

    def test_title_alone(self, tmp_path):
        page, figures = written(tmp_path, {"title": "Nothing yet", "runs": []})
        assert page.all("h1")[0].text() == "Nothing yet"
        assert page.all("section") == []
        assert figures == {"title": "Nothing yet", "runs": [], "means": []}

    def test_runs_of_which_little_is_known(self, tmp_path):
        bare = {"name": "din/base/seed-1", "backbone": "din", "variant": "base", "seed": 1}
        page, _ = written(
            tmp_path, {"title": "A run", "runs": [bare, {"metrics": {"all": {"auc": 0.7}}, "curve": [{"epoch": 1}]}]}
        )
        assert page.all("svg") == []
        assert "0.7000" in section(page, "results").text()

    def test_no_base_and_one_seed(self, tmp_path):
        page, _ = written(tmp_path, make_report(runs=[run("all_parameters", 1, 0.7, 0.6)], comparisons=[]))
        assert [cell.text().strip() for cell in table(section(page, "results"))[1]] == [
            "all parameters1 seed",
            "0.7000",
            "0.6000",
        ]
        assert "averaged" not in section(page, "results").text()
        assert "to the base" not in " ".join(svg.attributes["aria-label"] for svg in page.all("svg"))


EVIL = "<script>alert(1)</script>\"'&amp;<!-- -->{{ 7 * 7 }}$x$"


def poisoned(value, names):
    """Adds `EVIL` to every text and to the keys that are names of somebody's things."""
    if isinstance(value, dict):
        return {(key + EVIL if key in names else key): poisoned(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, names) for item in value]
    return value + EVIL if isinstance(value, str) else value


class TestTexts:
    def test_everything_is_escaped(self, tmp_path):
        names = {"train", "label", "movie", "story", "all", "cold", "hallucination", "tensorflow", "path"}
        report = poisoned(make_report(), names)
        for item in (*report["runs"], *report["comparisons"]):
            for key in ("variant", "against"):
                if item.get(key) == "base" + EVIL:
                    item[key] = "base"  # so that there are differences to show
        for item in report["comparisons"]:
            item["metric"] = item["metric"].removesuffix(EVIL)
        page, figures = written(tmp_path, report)
        assert page.all("script") == []
        shown = page.text() + " ".join(svg.attributes["aria-label"] for svg in page.all("svg"))
        assert shown.count("<script>alert(1)</script>") > 60
        assert "49" not in shown
        # In plots, too, where letters are letters, and a `$` begins no formula.
        assert "cold" + EVIL in [text.text() for svg in page.all("svg") for text in svg.all("text")]
        assert figures["title"] == "A run" + EVIL

    def test_other_scripts(self, tmp_path):
        texts = ("千と千尋の神隠し", "قصة مدينة", "Жизнь прекрасна", "ไทย 🎬", "עברית")
        report = make_report(
            title=texts[0],
            kept=[example(1.0, name=text, text=text, field=text) for text in texts],
        )
        for field, text in zip(report["weights"]["fields"], texts, strict=False):
            field["field"] = text
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns of each letter that its font does not have
            page, _ = written(tmp_path, report)
        assert page.all("h1")[0].text() == texts[0]
        assert page.all("meta", charset="utf-8")
        articles = section(page, "examples").all("article")[1:]
        assert [article.all("p")[0].text() for article in articles] == list(texts)
        assert {article.all("p")[0].attributes["dir"] for article in articles} == {"auto"}
        assert f"movie · {texts[0]}" in [node.text() for node in section(page, "weights").all("text")]

    def test_half_a_surrogate_pair(self, tmp_path):
        page, figures = written(tmp_path, {"title": "broken \ud83c text", "runs": [], "versions": {"a\udfff": "1"}})
        assert page.all("h1")[0].text() == figures["title"] == "broken \ufffd text"
        assert figures["versions"] == {"a\ufffd": "1"}

    @settings(max_examples=40, deadline=None)
    @given(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=60))
    def test_any_text_comes_back(self, tmp_path_factory, text):
        report = {"title": text, "runs": [], "kept": [example(1.0, text=text, name="x" + text)]}
        page, figures = written(tmp_path_factory.mktemp("text"), report)
        assert page.all("h1")[0].text() == text
        (article,) = section(page, "examples").all("article")
        assert article.all("p")[0].text() == text
        assert article.all("bdi")[0].text() == "x" + text
        assert figures["kept"][0]["text"] == text


class TestBadInput:
    @pytest.mark.parametrize("key", ["title", "runs"])
    def test_no_title_or_runs(self, key, tmp_path):
        report = make_report()
        del report[key]
        with pytest.raises(DataError, match=f"the report has no `{key}`. It must have `title` and `runs`. Received: "):
            write_report(tmp_path / "report", report)
        assert not (tmp_path / "report").exists()

    def test_what_json_cannot_hold(self, tmp_path):
        report = make_report(versions={"tensorflow": [1, {2}]})
        with pytest.raises(DataError, match=r"`report.versions.tensorflow\[1\]` is a set, which JSON cannot hold"):
            write_report(tmp_path / "report", report)
        assert not (tmp_path / "report").exists()

    def test_keys_that_are_not_strings(self, tmp_path):
        with pytest.raises(DataError, match=r"`report.faults.kinds` has the key 3. Keys must be strings"):
            write_report(tmp_path, make_report(faults={"auc": 0.5, "kinds": {3: {}}}))

    @pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
    def test_missing_extra(self, module, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"`{module}` is not installed. .*pip install 'kser-tf\[report\]'"):
            require_report_extra()
        with pytest.raises(MissingExtraError):
            write_report(tmp_path / "report", make_report())
        assert not (tmp_path / "report").exists()
        assert "0.7100" in text_summary(make_report())


class TestTextSummary:
    def test_all_of_it(self):
        report = make_report()
        report["runs"].append(run("placebo", 1, 0.7, 0.6))
        report["runs"][-1]["metrics"]["cold"]["auc"] = None
        assert text_summary(report) == (
            "A run\n"
            "=====\n"
            "The clicks are simulated.\n"
            "Knowledge helps on cold items.\n"
            "Shuffled knowledge does not.\n"
            "\n"
            "DIN: AUC, mean of 2 seeds, and difference to the base\n"
            "                All rows        Cold items\n"
            "base            0.7100          0.6100\n"
            "all parameters  0.7201 +0.0101  0.6500 +0.0400*\n"
            "placebo         0.7000          -\n"
            "* The 95 % interval of the difference excludes 0.\n"
            "\n"
            "In 93.1 % of all pairs of a good chunk and a planted fault, ESFNet gives the fault less weight "
            "(AUC of weight against fault 0.9312; 0.5 is chance).\n"
            "\n"
            "Check of the exported model: passed (1 passed, 0 failed).\n"
        )

    def test_title_alone(self):
        assert text_summary({"title": "Nothing yet", "runs": []}) == "Nothing yet\n===========\n"


class TestHowNumbersAreWritten:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.04, "0.0 s"),
            (59.94, "59.9 s"),
            (60, "1 min 0 s"),
            (200.4, "3 min 20 s"),
            (3600, "1 h 0 min"),
            (7530, "2 h 6 min"),
        ],
    )
    def test_duration(self, seconds, text):
        assert report_figures.duration(seconds) == text

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (14_123_456, "14.1 MB"),
            (2.3e9, "2.3 GB"),
            (5e15, "5000.0 TB"),
        ],
    )
    def test_size(self, number, text):
        assert report_figures.size(number) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0.00116, "+0.0012"), (-0.00116, "\N{MINUS SIGN}0.0012"), (-0.00001, "0.0000"), (0.00001, "0.0000")],
    )
    def test_signed(self, value, text):
        assert report_figures.signed(value) == text

    @pytest.mark.parametrize(
        ("low", "high", "text"), [(0, 1, "0"), (1, 10, "1-9"), (0, 10, "0-9"), (1000, None, "1,000+")]
    )
    def test_popularity(self, low, high, text):
        assert report_figures.popularity_name({"low": low, "high": high}) == text
