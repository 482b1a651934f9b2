"""The plots of a report, drawn by matplotlib as SVG that goes into the page.

matplotlib draws in placeholder colours, which are then replaced by the page's CSS variables: so a plot follows the page
into dark mode. Every plot is as wide as a telephone, and a wide screen shows several side by side: so its letters are
of one size everywhere.
"""

from __future__ import annotations

import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kser_tf.pipelines.report_figures import (
    BASE,
    Band,
    ReportFigures,
    backbone_name,
    band,
    differences,
    field_name,
    four_digits,
    popularity_name,
    shortened,
    signed,
    slice_name,
    three_digits,
    variant_name,
)

# In points, which are the units of the SVG.
_WIDTH, _HEIGHT = 360, 240
_POINTS_PER_INCH = 72

INK, _MUTED, LINE = "#f0f0e0", "#f0f0e1", "#f0f0e2"
_FIXED_COLOURS = {INK: "var(--ink)", _MUTED: "var(--muted)", LINE: "var(--line)"}
SERIES_COLOURS = [f"#f0f0f{i}" for i in range(8)]  # the page has --series-0 to --series-7; 0 is the base's


class _Marker(NamedTuple):
    drawn: str
    written: str


_MARKERS = [_Marker(*pair) for pair in ("o●", "s■", "^▲", "D◆", "v▼", "P✚", "p⬟", "*★")]

_BAND_OPACITY = 0.15
# More than three bands over each other hide the lines.
_MANY_BANDS = 3
_CROWDED_BAND_OPACITY = 0.07
_THIN_LINE = {"linewidth": 0.7, "alpha": 0.3}

_STYLE = {
    "svg.fonttype": "none",  # letters stay letters: small, searchable, in the page's font
    "svg.hashsalt": "kser-tf",  # equal figures give equal files
    "text.parse_math": False,  # a `$` in a name is a dollar
    "font.size": 11,
    "axes.labelsize": 11,
    "text.color": INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Plot:
    """One plot: what stands above it, what is said to those who do not see it, and the inside of its SVG."""

    title: str
    alt: str
    view_box: str
    body: str


@dataclass(frozen=True)
class LegendEntry:
    """A variant's name, the number of its colour, and its mark."""

    name: str
    series: int
    mark: str


@dataclass(frozen=True)
class Panel:
    """Plots side by side, at most `columns` of them, with one legend."""

    plots: Sequence[Plot]
    legend: Sequence[LegendEntry] = ()
    columns: int = 2


class PanelBuilder:
    """Collects plots that show variants, and remembers which, for the legend."""

    def __init__(self, figures: ReportFigures, columns: int = 2) -> None:
        self._others = [variant for variant in figures.variants if variant != BASE]
        self._columns = columns
        self._plots: list[Plot] = []
        self._shown: dict[str, None] = {}

    def add(
        self,
        key: str,
        title: str,
        alt: str,
        variants: Iterable[str],
        draw: Callable[[Any], None],
        height: float = _HEIGHT,
    ) -> None:
        """Adds a plot, which `draw` draws into the axes that it is given; `key` is the same for all plots of a panel."""
        self._shown.update(dict.fromkeys(variants))
        self._plots.append(drawn(f"{key}-{len(self._plots)}", title, alt, draw, height))

    def series(self, variant: str) -> int:
        """A variant's number, which decides its colour and mark: the same in all plots."""
        return 0 if variant == BASE else 1 + self._others.index(variant) % (len(SERIES_COLOURS) - 1)

    def colour(self, variant: str) -> str:
        """A variant's colour."""
        return SERIES_COLOURS[self.series(variant)]

    def line(self, variant: str) -> dict[str, Any]:
        """How matplotlib draws a variant's line."""
        return {"color": self.colour(variant), "linestyle": "--" if variant == BASE else "-"}

    def mark(self, variant: str) -> dict[str, Any]:
        """How matplotlib draws a variant's mark."""
        return {"color": self.colour(variant), "marker": _MARKERS[self.series(variant)].drawn}

    def draw_bands(self, axes: Any, bands: Mapping[str, tuple[Sequence[float], Band]], *, marked: bool) -> None:
        """For each variant, given its places and figures there, a line through the means on a band over the seeds."""
        opacity = _BAND_OPACITY if len(bands) <= _MANY_BANDS else _CROWDED_BAND_OPACITY
        for variant, (places, (mean, low, high)) in bands.items():
            if low != high:
                axes.fill_between(places, low, high, color=self.colour(variant), alpha=opacity, linewidth=0)
            axes.plot(places, mean, **self.line(variant) | (self.mark(variant) if marked else {}))

    def panel(self) -> Panel | None:
        """All plots that were added, with their legend; `None` if there is none."""
        legend = [
            LegendEntry(variant_name(variant), self.series(variant), _MARKERS[self.series(variant)].written)
            for variant in self._shown
        ]
        return Panel(self._plots, legend, self._columns) if self._plots else None


def difference_panel(figures: ReportFigures) -> Panel | None:
    """Differences of the AUC to the base's, with their intervals: slices down, variants below each other in each."""
    builder = PanelBuilder(figures)
    for backbone, variants in figures.runs.items():
        shown = {
            (variant, name): comparison
            for variant in variants
            for name in figures.slices
            if (comparison := figures.difference(backbone, variant, name)) is not None
        }
        if not shown:
            continue
        compared = list(dict.fromkeys(variant for variant, _ in shown))
        slices = [name for name in figures.slices if any(name == of for _, of in shown)]

        def draw(axes: Any, shown: Any = shown, compared: Any = compared, slices: Any = slices) -> None:
            for (variant, name), comparison in shown.items():
                place = slices.index(name) + 0.7 * ((compared.index(variant) + 0.5) / len(compared) - 0.5)
                interval = [comparison.get("low"), comparison.get("high")]
                if None not in interval:
                    axes.plot(interval, [place, place], color=builder.colour(variant))
                axes.plot([comparison["difference"]], [place], **builder.mark(variant))
            axes.axvline(0, color=INK, linewidth=1)
            for row in range(1, len(slices)):
                axes.axhline(row - 0.5, color=LINE, linewidth=0.6)
            axes.set_yticks(range(len(slices)), [slice_name(name) for name in slices])
            axes.set_ylim(len(slices) - 0.5, -0.5)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=5)

        said = "; ".join(
            f"{variant_name(variant)}, {slice_name(name)}: {signed(comparison['difference'])}"
            for (variant, name), comparison in shown.items()
        )
        title = backbone_name(backbone)
        height = 50 + len(slices) * max(24, 10 * len(compared))
        builder.add("difference", title, f"Difference of the AUC to the base, {title}. {said}.", compared, draw, height)
    return builder.panel()


def popularity_panel(figures: ReportFigures) -> Panel | None:
    """AUC by the item's training rows, and how far the variants are from the base there."""
    builder = PanelBuilder(figures)
    for backbone, variants in figures.runs.items():
        with_bins = [run for runs in variants.values() for run in runs if run.get("popularity")]
        if not with_bins:
            continue
        bins = _bins(with_bins[0])
        by_seed: dict[str, dict[Any, list[float | None]]] = {}
        for run in with_bins:
            if _bins(run) == bins:
                of_run = [of_bin.get("auc") for of_bin in run["popularity"]]
                by_seed.setdefault(run.get("variant") or "", {})[run.get("seed")] = of_run
        levels = {variant: band(zip(*seeds.values(), strict=True)) for variant, seeds in by_seed.items()}
        _add_popularity(builder, f"{backbone_name(backbone)}: AUC", bins, levels)

        base = by_seed.pop(BASE, {})
        paired = {
            variant: [differences(seeds[seed], base[seed]) for seed in seeds if seed in base]
            for variant, seeds in by_seed.items()
        }
        gaps = {variant: band(zip(*of_seeds, strict=True)) for variant, of_seeds in paired.items() if of_seeds}
        if gaps:
            _add_popularity(builder, f"{backbone_name(backbone)}: difference to the base", bins, gaps, to_base=True)
    return builder.panel()


def _bins(run: Mapping[str, Any]) -> list[str]:
    return [popularity_name(of_bin) for of_bin in run["popularity"]]


def _add_popularity(
    builder: PanelBuilder, title: str, bins: Sequence[str], bands: Mapping[str, Band], *, to_base: bool = False
) -> None:
    def draw(axes: Any) -> None:
        builder.draw_bands(axes, {variant: (range(len(bins)), of) for variant, of in bands.items()}, marked=True)
        if to_base:
            axes.axhline(0, color=INK, linewidth=1)
        axes.set_xticks(range(len(bins)), bins)
        axes.set_xlabel("training rows of the item")
        axes.locator_params(axis="y", nbins=5)

    text = signed if to_base else four_digits
    said = "; ".join(
        f"{variant_name(variant)}: "
        + ", ".join(f"{text(value)} at {name}" for name, value in zip(bins, mean, strict=True) if not math.isnan(value))
        for variant, (mean, _, _) in bands.items()
    )
    builder.add("popularity", title, f"{title}, by the training rows of the item. {said}.", bands, draw)


def curve_panel(figures: ReportFigures) -> Panel | None:
    """Learning curves: AUC on the validation rows, and the losses."""
    builder = PanelBuilder(figures, columns=3)
    titles = {"val_auc": "AUC on validation rows", "val_loss": "loss on validation rows", "loss": "loss in training"}
    for backbone, variants in figures.runs.items():
        for key, title in titles.items():
            curves = {
                variant: curves
                for variant, runs in variants.items()
                if (curves := [curve for run in runs if (curve := _Curve.of(run, key)).by_epoch])
            }
            if curves:
                _add_curves(builder, f"{backbone_name(backbone)}: {title}", curves)
    return builder.panel()


@dataclass(frozen=True)
class _Curve:
    """A run's figure by epoch, and the epoch that was kept."""

    by_epoch: dict[int, float]
    best_epoch: int | None

    @classmethod
    def of(cls, run: Mapping[str, Any], key: str) -> _Curve:
        curve = run.get("curve") or []
        return cls({epoch["epoch"]: epoch[key] for epoch in curve if epoch.get(key) is not None}, run.get("best_epoch"))


def _add_curves(builder: PanelBuilder, title: str, curves: Mapping[str, Sequence[_Curve]]) -> None:
    """Each seed as a thin line, and the mean as far as all were trained: beyond, it would jump whenever one stops."""
    means = {}
    for variant, of_seeds in curves.items():
        epochs = sorted(set.intersection(*(set(curve.by_epoch) for curve in of_seeds)))
        means[variant] = {epoch: statistics.fmean(curve.by_epoch[epoch] for curve in of_seeds) for epoch in epochs}

    def draw(axes: Any) -> None:
        for variant, of_seeds in curves.items():
            for curve in of_seeds:
                if len(of_seeds) > 1:
                    axes.plot(
                        list(curve.by_epoch), list(curve.by_epoch.values()), **builder.line(variant), **_THIN_LINE
                    )
                if curve.best_epoch in curve.by_epoch:
                    axes.plot([curve.best_epoch], [curve.by_epoch[curve.best_epoch]], **builder.mark(variant))
            axes.plot(list(means[variant]), list(means[variant].values()), **builder.line(variant))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.locator_params(axis="y", nbins=5)

    said = "; ".join(
        f"{variant_name(variant)}: "
        + ", ".join(f"{four_digits(value)} after epoch {epoch}" for epoch, value in mean.items())
        for variant, mean in means.items()
    )
    builder.add("curve", title, f"{title}, by epoch. {said}.", curves, draw)


def calibration_panel(figures: ReportFigures) -> Panel | None:
    """How much more, or less, happened than was predicted."""
    builder = PanelBuilder(figures)
    for backbone, variants in figures.runs.items():
        lines = {}
        for variant, runs in variants.items():
            curves = [run["calibration"] for run in runs if run.get("calibration")]
            # Seeds are averaged bin by bin. Ties can leave a seed with fewer bins, which then match no others'.
            most = max((len(curve) for curve in curves), default=0)
            places = list(zip(*(curve for curve in curves if len(curve) == most), strict=True))
            if places:
                predicted, _, _ = band([point["predicted"] for point in points] for points in places)
                gaps = ([point["observed"] - point["predicted"] for point in points] for points in places)
                lines[variant] = (predicted, band(gaps))
        if not lines:
            continue

        def draw(axes: Any, lines: Any = lines) -> None:
            builder.draw_bands(axes, lines, marked=False)
            axes.axhline(0, color=INK, linewidth=1)
            axes.set_xlabel("predicted probability")
            axes.locator_params(axis="both", nbins=5)

        said = "; ".join(
            f"{variant_name(variant)}: from {signed(min(mean))} to {signed(max(mean))}"
            for variant, (_, (mean, _, _)) in lines.items()
        )
        title = f"{backbone_name(backbone)}: observed less predicted"
        builder.add("calibration", title, f"{title}, by predicted probability. {said}.", lines, draw)
    return builder.panel()


def field_weight_panel(fields: Sequence[Mapping[str, Any]]) -> Panel | None:
    """For each field how its weights are spread: a silhouette of their histogram, below it quantiles and mean."""
    fields = [field for field in fields if field.get("mean") is not None]
    if not fields:
        return None

    def draw(axes: Any) -> None:
        for row, field in enumerate(fields):
            _draw_field(axes, row, field)
        axes.axvline(1, color=INK, linewidth=1, linestyle=":")
        axes.set_ylim(len(fields) - 0.7, -0.95)
        axes.set_yticks([])
        axes.set_xlabel("weight")

    said = "; ".join(f"{field_name(field)}: mean {three_digits(field['mean'])}" for field in fields)
    title = "Weight of chunks by field"
    return Panel([drawn("weights", title, f"{title}. {said}.", draw, 50 + 60 * len(fields))])


def _draw_field(axes: Any, row: int, field: Mapping[str, Any]) -> None:
    """Draws one field in a row of height 1; the y axis points down."""
    colour = SERIES_COLOURS[1]
    counts, edges = field.get("counts") or [], field.get("edges") or []
    if counts and max(counts) > 0 and len(edges) == len(counts) + 1:
        tops = [row - 0.55 * count / max(counts) for count in counts]
        axes.stairs(tops, edges, baseline=row, fill=True, color=colour, alpha=2 * _BAND_OPACITY)
    below = row + 0.12
    quantiles = field.get("quantiles") or {}
    for low, high, width in (("0.05", "0.95", 1.2), ("0.25", "0.75", 4.5)):
        span = [quantiles.get(low), quantiles.get(high)]
        if None not in span:
            axes.plot(span, [below, below], color=colour, linewidth=width, solid_capstyle="butt")
    axes.plot([field["mean"]], [below], marker="o", color=INK)
    name = shortened(field_name(field), 40)
    axes.annotate(name, (0, row - 0.62), xycoords=("axes fraction", "data"), va="bottom", annotation_clip=False)


def drawn(key: str, title: str, alt: str, draw: Callable[[Any], None], height: float) -> Plot:
    """Draws one plot.

    Args:
        key: str. Unique on the page, of letters, digits and `-`: begins the SVG's ids.
        title: str. Stands above the plot.
        alt: str. What there is to see, for those who do not see it.
        draw: Draws into the matplotlib axes that it is given.
        height: float. In points.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The font that measures does not have all scripts; the browser has.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(_WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = re.search(r"<svg\b[^>]*>(.*)</svg>", file.getvalue(), re.DOTALL)
    assert root is not None, "matplotlib wrote no <svg>"
    body = re.sub(r"<style\b[^>]*>.*?</style>", "", root.group(1), flags=re.DOTALL)  # it would apply to the whole page
    body = re.sub(r"<[^>]*>", lambda tag: _adapted(tag.group(), key), body)
    return Plot(title, alt, f"0 0 {_WIDTH} {height:g}", body)


def _adapted(tag: str, key: str) -> str:
    """Makes the ids of an SVG tag unique on the page, and its colours the page's."""
    tag = tag.replace("xlink:href=", "href=")
    tag = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{key}-", tag)
    for colour, variable in _FIXED_COLOURS.items():
        tag = tag.replace(colour, variable)
    return re.sub(r"#f0f0f(\d)", r"var(--series-\1)", tag)
