"""Figures of one run that appear in its report but not in its plots directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsvd.report.figures import new_figure
from fedsvd.report.plots import BLUE, LINE_COLORS, MARKERS, PALETTE, VERMILION
from fedsvd.report.tables import PHASES

Rows = Sequence[Mapping[str, Any]]
# With more lines than this they cannot be told apart: all are drawn in gray, with the largest value on top.
_MAX_LINES = 7
_HATCHES = ("", "//", "..", "xx")


def style_axes(axes: Axes) -> None:
    """Apply the style that all axes share."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def epsilon_figure(rows: Rows, budget: float) -> Figure:
    """Plot the ε spent over rounds, one line per client, with the budget as a dashed line.

    Args:
        rows: Rows of ``metrics.jsonl``; without ``client_epsilons`` only the largest ε is plotted.
        budget: ε budget of the run.
    """
    figure = new_figure(7, 3.8)
    axes = figure.subplots()
    names = sorted({name for row in rows for name in row.get("client_epsilons", {})}, key=int)
    for index, name in enumerate(names):
        points = [
            (row["server_round"], e) for row in rows if (e := row.get("client_epsilons", {}).get(name)) is not None
        ]
        if not points:
            continue
        style: dict[str, Any] = {"color": "0.7"}
        if len(names) <= _MAX_LINES:
            style = {"color": LINE_COLORS[index], "marker": MARKERS[index], "label": f"client {name}"}
        axes.plot(*zip(*points, strict=True), linewidth=1.2, markersize=4, **style)
    if not names or len(names) > _MAX_LINES:
        largest = [(row["server_round"], row["epsilon"]) for row in rows if row["epsilon"] is not None]
        axes.plot(*zip(*largest, strict=True), marker="s", markersize=4, color=VERMILION, label="largest")
    axes.axhline(budget, color="black", linestyle="--", linewidth=1.2)
    axes.annotate(f"budget ε = {budget:g}", (0, budget), xytext=(2, 4), textcoords="offset points", fontsize=9)
    axes.set_ylim(0, 1.15 * max(budget, *(row["epsilon"] or 0 for row in rows)))
    axes.set_xlim(left=0)
    axes.set_xlabel("round")
    axes.set_ylabel("ε spent")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def traffic_and_time_figure(rows: Rows) -> Figure:
    """Plot the bytes of each round and, in a panel below, the seconds by phase."""
    figure = new_figure(7, 5.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    rounds = [row["server_round"] for row in rows]
    for key, label, color, marker in (
        ("bytes_down", "to the clients", BLUE, "o"),
        ("bytes_up", "to the server", VERMILION, "s"),
    ):
        values = [row[key] / 1024 for row in rows]
        top.plot(rounds, values, label=label, color=color, marker=marker, markersize=4, linewidth=1.2)
    top.set_ylabel("KiB per round, all clients")
    top.set_ylim(bottom=0)
    base = [0.0] * len(rows)
    for index, (key, label) in enumerate(PHASES.items()):
        values = [row[key] for row in rows]
        color, hatch = PALETTE[index], _HATCHES[index]
        bottom.bar(rounds, values, bottom=base, label=label, color=color, hatch=hatch, edgecolor="white", linewidth=0.3)
        base = [low + value for low, value in zip(base, values, strict=True)]
    bottom.set_ylabel("seconds")
    bottom.set_xlabel("round")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (top, bottom):
        style_axes(axes)
        axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure
