"""What `inspect` found, as `inspect.json` for machines and `inspect.html` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kser_tf.files import write_json, write_text
from kser_tf.pipelines import report_plots, report_tables
from kser_tf.pipelines.inspect.weights import HIGH_WEIGHT, LOW_WEIGHT
from kser_tf.pipelines.report import rendered
from kser_tf.pipelines.report_figures import (
    field_name,
    four_digits,
    percent,
    plain,
    plural,
    signed,
    slice_name,
    three_digits,
    whole,
)
from kser_tf.pipelines.report_tables import MISSING, Cell, Head, Table, comparison_of, number_cell, table

INSPECT_JSON = "inspect.json"
INSPECT_HTML = "inspect.html"

_TEMPLATE = "inspect/page.html.jinja"

_SPACES = {
    "text": "text",
    "base_ids": "the base's ids",
    "aligned": "aligned knowledge",
    "embedding": "id and knowledge",
    "profiles": "profiles of the user's side",
    "co_rated_in_training": "liked by the same users (training)",
    "co_rated_in_test": "liked by the same users (test)",
}
# What the others are compared with: likes in training, and for items that have none there, likes among the test rows.
_YARDSTICKS = ("co_rated_in_training", "co_rated_in_test")
_SEEN = {
    "largest_cosine_to_neighbours": "Largest cosine to its neighbours",
    "mean_cosine_to_neighbours": "Mean cosine to its neighbours",
    "cosine_to_catalogue": "Cosine to the catalogue's average",
    "words": "Words",
    "training_rows": "Training rows of the item",
}
_GROUPS = {
    "all": "All items",
    "head": "Head items",
    "tail": "Tail items",
    "cold": "Items without a training row",
}


def write_page(folder: str | Path, content: Mapping[str, Any]) -> list[str]:
    """Writes `inspect.json` and `inspect.html`, both of the same figures.

    Args:
        folder: Where to.
        content: What `inspect` found.

    Returns:
        The page's first sentences.
    """
    folder, found = Path(folder), plain(content, "inspect")
    found["summary"] = sentences(found)
    html = rendered(_TEMPLATE, _page(found))
    write_json(folder / INSPECT_JSON, found)
    write_text(folder / INSPECT_HTML, html)
    return list(found["summary"])


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Returns what was found in words, with figures."""
    lines = []
    for entity in dict.fromkeys(field["entity"] for field in found["weights"]["fields"]):
        lines += _weight_sentences(found, entity)
    lines += [
        f"What is known of each {each['entity']} passes no ESFNet: the adaptor {each['adaptor']} does not weigh chunks."
        for each in found["without_esf_net"]
    ]
    if found["spaces"] is None:
        lines.append("There is no knowledge about the candidates, so no feature spaces of theirs are compared.")
    else:
        lines += _space_sentences(found["spaces"])
    if found["gains"] is None:
        lines.append("No base was given, so nothing is said of where knowledge helps and hurts.")
    else:
        lines += _gain_sentences(found)
    return [*lines, *found["remarks"]]


def _weight_sentences(found: Mapping[str, Any], entity: str) -> list[str]:
    fields = [field for field in found["weights"]["fields"] if field["entity"] == entity]
    chunks = sum(field["count"] for field in fields)
    mean, below, above = (sum(field[key] * field["count"] for field in fields) / chunks for key in _SHARES)
    by_place = found["explained_by_place"].get(entity)
    lines = [
        f"ESFNet weighs {plural(chunks, 'chunk')} about each {entity} at {three_digits(mean)} on average (1 is neutral); "
        f"{percent(below)} weigh less than {LOW_WEIGHT:g}, {percent(above)} more than {HIGH_WEIGHT:g}."
    ]
    if by_place is not None:
        lines.append(
            f"{percent(by_place)} of the variance of these weights lies between fields and places; the rest hangs on what "
            "a chunk says and whose it is."
        )
    strongest = []
    for field in fields:  # field by field: over all of them a correlation would mix what one field has against another
        seen = [
            each
            for each in found["associations"]
            if (each["entity"], each["field"]) == (entity, field["field"]) and each["correlation"] is not None
        ]
        if seen:
            most = max(seen, key=lambda each: abs(each["correlation"]))
            strongest.append(f"{field['field']}: {_SEEN[most['with']].lower()} ({_correlation(most['correlation'])})")
    if strongest:
        lines.append(f"What the weight goes with most (rank correlation), in {'; in '.join(strongest)}.")
    return lines


_SHARES = ("mean", "below", "above")


def _space_sentences(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for yardstick, group, rows in (
        ("co_rated_in_training", "all", "training rows"),
        ("co_rated_in_test", "cold", "test rows"),
    ):
        shares = [
            f"{_SPACES[each['first']]} {percent(each['overlap'])}"
            for each in found["agreements"]
            if (each["second"], each["group"]) == (yardstick, group)
            and each["first"] not in _YARDSTICKS
            and each["overlap"] is not None
        ]
        if shares:
            lines.append(
                f"{_GROUPS[group]}: of an item's {found['neighbours']} nearest neighbours in a space so many are also its nearest by "
                f"likes of the same users among the {rows}: {', '.join(shares)}."
            )
    return lines


def _gain_sentences(found: Mapping[str, Any]) -> list[str]:
    gains, least = found["gains"], found["settings"]["least_users"]
    overall = gains["slices"][0]
    lines = [
        f"Log loss on {plural(overall['rows'], 'test row')}: {four_digits(overall['base'])} without knowledge, "
        f"{four_digits(overall['model'])} with it ({_interval(overall)})."
    ]
    for kind in gains["kinds"]:
        if kind["groups"]:
            lines.append(
                f"{kind['feature']}: of {whole(kind['groups'])} with test rows of at least {least} users, {whole(kind['worse'])} "
                f"are worse with knowledge, {whole(kind['surely_worse'])} of them with an interval above zero, and "
                f"{whole(kind['surely_better'])} better with one below (by chance alone about {kind['by_chance']:.1f} each); with "
                f"intervals for so many comparisons {whole(kind['worse_of_all'])} and {whole(kind['better_of_all'])}."
            )
    return lines


def _page(found: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template shows."""
    gains, agreeing = found["gains"] or {}, found["spaces"] or {}
    return {
        "title": found["title"],
        "summary": found["summary"],
        "settings": found["settings"],
        "low": LOW_WEIGHT,
        "high": HIGH_WEIGHT,
        "field_weights": report_plots.field_weight_panel(found["weights"]["fields"]),
        "weights": _weight_table(found["weights"]),
        "associations": _association_table(found["associations"]),
        "filtered": report_tables.examples(found["filtered"]),
        "kept": report_tables.examples(found["kept"]),
        "agreements": _agreement_table(agreeing),
        "spaces": found["spaces"],
        "slices": _group_table("Slices of the test rows", gains.get("slices") or []),
        "kinds": _kind_table(gains.get("kinds") or []),
        "sides": [
            (title, _group_table(title, gains.get(key) or []))
            for key, title in (
                ("worst_items", "Items that knowledge hurts"),
                ("best_items", "Items that it helps"),
                ("worst_groups", "Groups that knowledge hurts"),
                ("best_groups", "Groups that it helps"),
            )
        ],
        "has_gains": found["gains"] is not None,
    }


def _weight_table(figures: Mapping[str, Any]) -> Table | None:
    """A row for each field, and below it one for each of its places."""
    rows = []
    for field in figures["fields"]:
        rows.append(_weight_row(field_name(field), "all", field))
        for place in figures["chunks"]:
            if (place["entity"], place["field"]) == (field["entity"], field["field"]):
                rows.append(_weight_row(field_name(place), str(place["position"] + 1), place))
    names = (
        "Field",
        "Chunk",
        "Chunks",
        "Mean weight",
        "Deviation",
        f"Below {LOW_WEIGHT:g}",
        f"Above {HIGH_WEIGHT:g}",
    )
    return table("Weight by field and place", names, rows)


def _weight_row(field: str, place: str, figures: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(field),
        Cell(place),
        number_cell(figures["count"], whole),
        number_cell(figures["mean"], three_digits),
        number_cell(figures["deviation"], three_digits),
        number_cell(figures["below"], percent),
        number_cell(figures["above"], percent),
    ]


def _association_table(associations: Sequence[Mapping[str, Any]]) -> Table | None:
    """Fields down, what the gate sees across."""
    seen = [name for name in _SEEN if any(each["with"] == name for each in associations)]
    by_field: dict[str, dict[str, float | None]] = {}
    for each in associations:
        field = f"{each['entity']} · all fields" if each["field"] is None else field_name(each)
        by_field.setdefault(field, {})[each["with"]] = each["correlation"]
    rows = [
        [Cell(field), *(number_cell(of.get(name), _correlation) for name in seen)] for field, of in by_field.items()
    ]
    return table("Rank correlation of the weight", ("Field", *(_SEEN[name] for name in seen)), rows)


def _agreement_table(agreeing: Mapping[str, Any]) -> Table | None:
    """Pairs of spaces down, groups of items across."""
    by_pair: dict[str, dict[str, Mapping[str, Any]]] = {}
    for each in agreeing.get("agreements") or []:
        by_pair.setdefault(f"{_SPACES[each['first']]} / {_SPACES[each['second']]}", {})[each["group"]] = each
    rows = [[Cell(pair), *(_agreement_cell(of[name]) for name in _GROUPS)] for pair, of in by_pair.items()]
    if not rows:
        return None
    counts = agreeing["items"]
    return Table(
        "Shared neighbours",
        [Head("Spaces"), *(Head(name, plural(counts[key], "item")) for key, name in _GROUPS.items())],
        rows,
    )


def _agreement_cell(each: Mapping[str, Any]) -> Cell:
    if each["overlap"] is None:
        return Cell(MISSING)
    shown = number_cell(each["overlap"], percent)
    error = "" if each["standard_error"] is None else f"± {100 * each['standard_error']:.1f}, "
    note = f"{error}{plural(each['items'], 'item')}; chance {percent(each['by_chance'])}"
    return Cell(number=shown.number, note=note)


def _group_table(caption: str, groups: Sequence[Mapping[str, Any]]) -> Table | None:
    rows = [
        [
            Cell(f"{each['feature']} · {each['name']}" if "feature" in each else slice_name(each["name"])),
            number_cell(each["rows"], whole),
            number_cell(each["users"], whole),
            number_cell(each["base"], four_digits),
            number_cell(each["model"], four_digits),
            Cell(comparison=comparison_of({**each, "metric": "log_loss"})),
        ]
        for each in groups
    ]
    return table(caption, ("", "Rows", "Users", "Base", "With knowledge", "Difference"), rows)


def _kind_table(kinds: Sequence[Mapping[str, Any]]) -> Table | None:
    columns = {
        "groups": "Groups",
        "too_small": "Left out: too few users",
        "worse": "Worse",
        "better": "Better",
        "surely_worse": "Interval above zero",
        "surely_better": "Interval below zero",
    }
    rows = [
        [
            Cell(kind["feature"]),
            *(number_cell(kind[key], whole) for key in columns),
            number_cell(kind["by_chance"], lambda count: f"{count:.1f}"),
            number_cell(kind["worse_of_all"], whole),
            number_cell(kind["better_of_all"], whole),
        ]
        for kind in kinds
    ]
    last = ("By chance, each", "Worse, corrected", "Better, corrected")
    return table("How many are worse", ("Feature", *columns.values(), *last), rows)


def _interval(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None or entry["high"] is None:
        return signed(entry["difference"])
    return f"{signed(entry['difference'])} [{signed(entry['low'])}, {signed(entry['high'])}]"


def _correlation(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
