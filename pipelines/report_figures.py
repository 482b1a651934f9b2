"""The figures of a report: made plain for JSON, grouped, averaged over seeds, and given the names that people read."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from kser_tf.errors import ConfigError, DataError
from kser_tf.metrics import TAIL_TRAINING_ROWS

# The variant that others are compared with.
BASE = "base"

METRICS = {"auc": "AUC", "gauc": "GAUC", "log_loss": "Log loss", "calibration_error": "Calibration error"}
_LOWER_IS_BETTER = ("log_loss", "calibration_error")

# Known slices in the order of the page, variants and backbones: name and meaning. Others go by the name they come with.
SLICES = {
    "all": ("All rows", ""),
    "warm": ("Warm items", "items that were not held out of training"),
    "head": ("Head items", f"warm items with at least {TAIL_TRAINING_ROWS} training rows"),
    "tail": ("Tail items", f"warm items with fewer than {TAIL_TRAINING_ROWS} training rows"),
    "cold": ("Cold items", "items taken out of training altogether"),
    "active_users": ("Active users", "users with more interactions than the median user"),
    "quiet_users": ("Quiet users", "the other users"),
    "little_text": ("Little text", "items with the least text, a third of those that have any"),
    "some_text": ("Some text", "the third in the middle"),
    "much_text": ("Much text", "the third with the most text"),
    "no_text": ("No text", "items without any text"),
}
VARIANTS = {
    BASE: ("base", "the backbone without knowledge"),
    "all_parameters": ("all parameters", "extractor and backbone trained together"),
    "extractor_only": (
        "extractor only",
        "from a trained base: the extractor, the embedding layers and the output layer are trained, the core is frozen",
    ),
    "placebo": (
        "placebo",
        "the same model on shuffled knowledge, each entity with the text of another: what it gains is not knowledge",
    ),
}

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# Mean, lowest and highest over the seeds, each at every place along an axis; NaN where no seed has a figure.
Band: TypeAlias = tuple[list[float], list[float], list[float]]


class ReportFigures:
    """A report's content, and what is asked of it.

    Args:
        report: What `write_report` is given.

    Raises:
        DataError: `title` or `runs` is missing, or a value is none that JSON can hold.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        for key in ("title", "runs"):
            if key not in report:
                raise DataError(
                    f"the report has no `{key}`. It must have `title` and `runs`. Received: {sorted(report)}"
                )
        self.json: dict[str, Any] = plain(report, "report")
        self.json["runs"] = self.json["runs"] or []
        self.json["means"] = means_over_seeds(self.json["runs"])

    def part(self, name: str) -> Any:
        """Returns a part of the report, an empty mapping if it is missing, `None` or empty."""
        return self.json.get(name) or {}

    @functools.cached_property
    def runs(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Backbone -> variant -> its runs, one a seed. The base comes first, the others as they come."""
        grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for run in sorted(self.json["runs"], key=lambda run: run.get("variant") != BASE):
            grouped.setdefault(run.get("backbone") or "", {}).setdefault(run.get("variant") or "", []).append(run)
        return grouped

    @functools.cached_property
    def variants(self) -> list[str]:
        """All variants, over the backbones."""
        return list(dict.fromkeys(variant for variants in self.runs.values() for variant in variants))

    @functools.cached_property
    def slices(self) -> list[str]:
        """The slices that any run has, known ones first and in their order."""
        found = dict.fromkeys(name for run in self.json["runs"] for name in run.get("metrics") or {})
        return [name for name in SLICES if name in found] + [name for name in found if name not in SLICES]

    @property
    def several_seeds(self) -> bool:
        """Whether any variant was trained more than once."""
        return any(len(runs) > 1 for variants in self.runs.values() for runs in variants.values())

    def mean(self, backbone: str, variant: str, slice_name: str, metric: str) -> dict[str, Any] | None:
        """Returns an entry of `means_over_seeds`, if there is one."""
        wanted = {"backbone": backbone, "variant": variant, "slice": slice_name, "metric": metric}
        return next((mean for mean in self.json["means"] if wanted.items() <= mean.items()), None)

    def difference(self, backbone: str, variant: str, slice_name: str) -> dict[str, Any] | None:
        """Returns the comparison of a variant's AUC with the base's, if there is one with a figure in it."""
        for comparison in self.part("comparisons"):
            if (
                (comparison.get("backbone"), comparison.get("variant")) == (backbone, variant)
                and (comparison.get("slice"), comparison.get("metric")) == (slice_name, "auc")
                and comparison.get("against") == BASE
                and comparison.get("difference") is not None
            ):
                return dict(comparison)
        return None


def plain(value: Any, where: str) -> Any:
    """Returns a value as JSON can hold it: NumPy numbers as plain ones, NaN and infinity as `None`.

    Args:
        value: Mappings, lists and tuples of anything of the kind, NumPy numbers and arrays, strings, paths.
        where: str. What the value is, for messages.

    Raises:
        DataError: Somewhere in it is another type, or a key that is not a string.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):  # half of a surrogate pair, from a broken escape in JSON, cannot be written as UTF-8
        return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"`{where}` has the key {key!r}. Keys must be strings: JSON has no others.")
        return {plain(key, where): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise DataError(
        f"`{where}` is a {type(value).__name__}, which JSON cannot hold. Give numbers, strings, lists or mappings."
    )


def means_over_seeds(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns `{"backbone", "variant", "slice", "metric", "mean", "standard_deviation", "seeds"}` of all there are.

    The standard deviation is that of the sample (n - 1), `None` for one seed. Seeds without the figure are left out.
    """
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for run in runs:
        for name, of_slice in (run.get("metrics") or {}).items():
            for metric in METRICS:
                if of_slice.get(metric) is not None:
                    key = (run.get("backbone") or "", run.get("variant") or "", name, metric)
                    values.setdefault(key, []).append(of_slice[metric])
    return [
        {
            "backbone": backbone,
            "variant": variant,
            "slice": name,
            "metric": metric,
            "mean": statistics.fmean(of_seeds),
            "standard_deviation": statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
            "seeds": len(of_seeds),
        }
        for (backbone, variant, name, metric), of_seeds in values.items()
    ]


def band(places: Iterable[Sequence[float | None]]) -> Band:
    """Returns mean, lowest and highest over the seeds, from the seeds' figures at each place."""
    mean, low, high = [], [], []
    for figures in places:
        present = [figure for figure in figures if figure is not None]
        mean.append(statistics.fmean(present) if present else math.nan)
        low.append(min(present, default=math.nan))
        high.append(max(present, default=math.nan))
    return mean, low, high


def differences(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float | None]:
    """Returns ours - theirs, place by place; `None` where one is not defined."""
    return [None if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True)]


def tone(comparison: Mapping[str, Any]) -> str:
    """Returns `"better"` or `"worse"` where the interval excludes 0, else the empty string."""
    low, high = comparison.get("low"), comparison.get("high")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) != (comparison.get("metric") in _LOWER_IS_BETTER) else "worse"


@functools.cache
def backbone_name(backbone: str) -> str:
    """The name that is read: the title of the backbone's class, or what was given where there is no such class."""
    from kser_tf.models import backbones

    try:
        return backbones.get(backbone).title
    except ConfigError:
        return backbone


def variant_name(variant: str) -> str:
    """The name that is read."""
    return VARIANTS[variant][0] if variant in VARIANTS else variant.replace("_", " ")


def slice_name(name: str) -> str:
    """The name that is read."""
    return SLICES[name][0] if name in SLICES else name.replace("_", " ")


def field_name(chunk: Mapping[str, Any]) -> str:
    """Entity and field of something that has them."""
    return " · ".join(str(chunk[key]) for key in ("entity", "field") if chunk.get(key))


def popularity_name(popularity: Mapping[str, Any]) -> str:
    """A bin of training rows, as `1-9` or `1,000+`."""
    low, high = popularity["low"], popularity.get("high")
    if high is None:
        return f"{low:,}+"
    return f"{low}" if high - low == 1 else f"{low}-{high - 1}"


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters; what was cut shows as an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def four_digits(value: float) -> str:
    """AUC and its like: differences of 0.0001 are what is looked for."""
    return f"{value:.4f}"


def signed(value: float) -> str:
    """A difference. What is rounded to nothing has no sign."""
    text = f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if float(text[1:]) == 0 else text


def three_digits(value: float) -> str:
    """A weight."""
    return f"{value:.3f}"


def whole(value: float) -> str:
    """A count."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """A time span."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"


def size(number: float) -> str:
    """A number of bytes, in decimal units."""
    if number < 1000:
        return f"{number:.0f} bytes"
    power = min(4, int(math.log10(number) / 3))
    return f"{number / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def plural(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
