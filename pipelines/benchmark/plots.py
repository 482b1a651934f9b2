"""The plots of a benchmark: differences with their intervals, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kser_tf.pipelines.benchmark.figures import FIRST_SLICES, BenchmarkFigures, compared
from kser_tf.pipelines.report_figures import BASE, Band, band, percent, signed, slice_name, variant_name
from kser_tf.pipelines.report_plots import INK, SERIES_COLOURS, Panel, PanelBuilder, Plot, drawn

_ROW, _MARGIN = 19, 58  # of a forest plot, in points


def forest_panels(figures: BenchmarkFigures, *, against_base: bool) -> list[tuple[str, Panel]]:
    """For each group plots of the slices that are asked for first: one row a comparison, its difference and both intervals."""
    panels = []
    for number, group in enumerate(figures.groups):
        entries = [
            entry for entry in figures.of_group("comparisons", group) if (entry["against"] == BASE) == against_base
        ]
        slices = [name for name in FIRST_SLICES if any(entry["slice"] == name for entry in entries)]
        key = f"forest-{'base' if against_base else 'peers'}-{number}"
        plots = [
            _forest(f"{key}-{i}", name, [entry for entry in entries if entry["slice"] == name])
            for i, name in enumerate(slices)
        ]
        if plots:
            panels.append((group, Panel(plots, columns=3)))
    return panels


def _forest(key: str, name: str, entries: Sequence[Mapping[str, Any]]) -> Plot:
    def draw(axes: Any) -> None:
        for row, entry in enumerate(entries):
            for ends, width in ((("users_low", "users_high"), 1.0), (("low", "high"), 3.5)):
                interval = [entry[end] for end in ends]
                if None not in interval:
                    axes.plot(interval, [row, row], color=SERIES_COLOURS[1], linewidth=width, solid_capstyle="butt")
            axes.plot([entry["difference"]], [row], color=SERIES_COLOURS[1], marker="o")
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(entries)), [compared(entry) for entry in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)

    said = "; ".join(f"{compared(entry)}: {signed(entry['difference'])}" for entry in entries)
    title = slice_name(name)
    return drawn(key, title, f"Differences of the AUC, {title}. {said}.", draw, _MARGIN + _ROW * len(entries))


def learning_panel(figures: BenchmarkFigures) -> Panel | None:
    """AUC, and its difference to the base, by the share of the training users."""
    builder = PanelBuilder(figures.every_share, columns=3)
    for group in figures.groups:
        shares = figures.shares(group)
        if len(shares) < 2:
            continue
        levels: dict[str, dict[float, list[float | None]]] = {}
        for run in figures.of_group("runs", group, whole=False):
            auc = run["metrics"].get("all", {}).get("auc")
            levels.setdefault(run["variant"], {}).setdefault(run["training_users"], []).append(auc)
        curve = {variant: _curve(shares, of) for variant, of in levels.items() if len(of) > 1}
        _add_learning(builder, f"{group}: AUC, all rows", shares, curve, to_base=False)
        for name in FIRST_SLICES:
            gains: dict[str, dict[float, list[float | None]]] = {}
            for entry in figures.of_group("comparisons", group, whole=False):
                if entry["slice"] == name and entry["against"] == BASE:
                    of_variant = gains.setdefault(entry["variant"], {})
                    of_variant[entry["training_users"]] = list(entry["by_seed"].values())
            curve = {variant: _curve(shares, of) for variant, of in gains.items() if len(of) > 1}
            title = f"{group}: difference to the base, {slice_name(name)}"
            _add_learning(builder, title, shares, curve, to_base=True)
    return builder.panel()


def _curve(shares: Sequence[float], of: Mapping[float, list[float | None]]) -> tuple[list[int], Band]:
    """Places among the shares, and the band over the seeds there."""
    places = [i for i, share in enumerate(shares) if share in of]
    return places, band(of[shares[i]] for i in places)


def _add_learning(
    builder: PanelBuilder, title: str, shares: Sequence[float], curve: Mapping[str, Any], *, to_base: bool
) -> None:
    if not curve:
        return

    def draw(axes: Any) -> None:
        builder.draw_bands(axes, curve, marked=True)
        if to_base:
            axes.axhline(0, color=INK, linewidth=1)
        axes.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
        axes.set_xlabel("share of the training users")
        axes.locator_params(axis="y", nbins=5)

    said = "; ".join(
        f"{variant_name(variant)}: "
        + ", ".join(
            f"{signed(value) if to_base else f'{value:.4f}'} at {percent(shares[i])}"
            for i, value in zip(places, mean, strict=True)
        )
        for variant, (places, (mean, _, _)) in curve.items()
    )
    builder.add("learning", title, f"{title}, by the share of the training users. {said}.", curve, draw)
