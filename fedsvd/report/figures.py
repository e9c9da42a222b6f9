"""Figures whose labels are shown as they are, whatever characters they contain, and which cannot end a run."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, ParamSpec

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from fedsvd.report.literal import visible

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")

_MAX_LABEL = 48
_MAX_LEGEND_ENTRIES = 40
# matplotlib's own font has Latin, Greek, Cyrillic, Hebrew and Arabic; the first of these that is installed has more.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei",
    "SimHei", "Yu Gothic", "IPAexGothic", "Malgun Gothic", "Apple SD Gothic Neo", "Arial Unicode MS", "Unifont",
)  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, with a canvas to save it from."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def set_literal(text: Text, label: object) -> None:
    """Set a text that may contain any characters: dollar signs do not start a formula, and long labels are cut."""
    line = visible(label)
    line = line if line.strip() else repr(line)
    text.set_parse_math(False)
    text.set_text(line if len(line) <= _MAX_LABEL else f"{line[: _MAX_LABEL - 1]}…")


def literal_legend(parent: Figure | Axes, handles: Sequence[Any], labels: Sequence[object], **options: Any) -> None:
    """Add a legend of labels that may contain any characters.

    Labels of artists are not used, because matplotlib omits those that start with an underscore. A legend with too many
    entries for a figure ends with their number.

    Args:
        parent: The figure or axes.
        handles: One artist per label.
        labels: The labels.
        **options: Options of ``legend``.
    """
    shown = len(labels) if len(labels) <= _MAX_LEGEND_ENTRIES else _MAX_LEGEND_ENTRIES - 1
    entries, artists = list(labels[:shown]), list(handles[:shown])
    if shown < len(labels):
        entries.append(f"… and {len(labels) - shown} more")
        artists.append(Line2D([], [], linestyle="none"))
    if not entries:
        return
    legend = parent.legend(artists, [str(number) for number in range(len(entries))], **options)
    for text, label in zip(legend.get_texts(), entries, strict=True):
        set_literal(text, label)


def save_figure(figure: Figure, target: Path | IO[bytes], **options: Any) -> None:
    """Save a figure; characters that no installed font has are drawn as boxes, without a warning."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    fallback = _fallback_font()
    if fallback is not None:
        for text in figure.findobj(Text):
            if isinstance(text, Text) and not text.get_text().isascii():
                text.set_fontfamily([*rcParams["font.family"], fallback])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support", category=UserWarning)
        figure.savefig(target, **options)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    save_figure(figure, path, dpi=150)


def log_failure(plot: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Let a function that only shows a result fail without ending the run: log the reason in one line instead."""

    @functools.wraps(plot)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            plot(*args, **kwargs)
        except Exception as error:
            logger.warning(
                "%s failed (%s: %s); the run and its results are not affected.",
                plot.__name__,
                type(error).__name__,
                visible(error),
            )

    return guarded


@functools.lru_cache(maxsize=1)
def _fallback_font() -> str | None:
    from matplotlib import font_manager

    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return next((name for name in _FALLBACK_FONTS if name in installed), None)
