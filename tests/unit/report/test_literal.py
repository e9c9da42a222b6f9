"""Tests that class names, texts and paths are shown as they are: in terminals, Markdown, HTML and figures."""

import html
import io
import logging
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fedsvd.report import figures
from fedsvd.report.document import Bullets, Paragraph, Section, TableBlock, to_html, to_markdown
from fedsvd.report.figures import log_failure, save_figure, save_png, set_literal
from fedsvd.report.literal import add_literal_row, code_span, literal, markdown_text, one_line, visible
from fedsvd.report.plots import counted_unit, partitions_figure, plot_partitions
from fedsvd.report.progress import Reporter

NAMES = [
    "$", "$$", "$$$", "$x^{$", "[/red]", "[bold]x[/bold]", "_a", "__b", "中文", "عربي", "😀", "| a |", "`c`",
    "<b>&amp;", "~~s~~", "# h", "1. x", "- y", "\\alpha", "a\x1b[31m", "two\nlines",
    "\u202eright to left", "x" * 300, " ",
]  # fmt: skip
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def text_of(rendered: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", rendered)).strip()


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202e\u2028\x85\x7f", r"\u202e\u2028\x85\x7f"),
        ("\ud800", r"\ud800"),
        ("ä中ع😀 \u00a0", "ä中ع😀 \u00a0"),
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, expected: str) -> None:
    assert visible(text) == expected
    assert visible("a\nb", keep="\n") == "a\nb"


@pytest.mark.slow
@given(st.text())
def test_shown_text_has_no_control_characters(text: str) -> None:
    assert all(ord(character) >= 32 and not 127 <= ord(character) < 160 for character in visible(text))
    assert "\n" not in one_line(text)
    visible(text).encode("utf-8")


@given(st.text(alphabet=st.one_of(st.sampled_from("\\`*_[]()<>#+-.!|~$&;=:1 \n\x1b"), st.characters()), min_size=1))
@example("_a_ __b__")
@example("1. a")
@example("- a")
@example("---")
@example("=")
@example("&lt;")
@example("[a](b)")
@example("<!-- a -->")
def test_markdown_shows_text_as_it_is(text: str) -> None:
    expected = one_line(text)
    assert text_of(MARKDOWN.render(markdown_text(text))) == expected.strip()
    table = MARKDOWN.render(f"| a | b |\n|---|---|\n| {markdown_text(text)} | end |")
    assert [cell.strip() for cell in text_of(table).splitlines() if cell.strip()] == [
        part for part in ("a", "b", expected.strip(), "end") if part
    ]
    if expected:
        assert text_of(MARKDOWN.render(code_span(text))) == expected.strip()


@pytest.mark.parametrize("name", NAMES)
def test_terminal_shows_text_as_it_is(name: str) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, width=400)
    table = Table(box=None, show_header=False)
    add_literal_row(table, [name, 1])
    console.print(literal(name), soft_wrap=True)
    console.print(table)

    printed, row = stream.getvalue().splitlines()
    assert printed == visible(name)
    assert visible(name) in row


def test_progress_shows_reasons_paths_and_warnings_as_they_are(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=False, width=200)
    row = {
        "server_round": 1, "accuracy": None, "epsilon": None, "skipped": False, "loss": None,
        "clients_refused": {"0": "DataError: [/red] \x1b[2J"}, "clients_used": 0, "clients_sampled": 1,
        "bytes_down": 0, "bytes_up": 0, "seconds_train": 0, "seconds_aggregate": 0, "seconds_evaluate": 0,
        "seconds_write": 0,
    }  # fmt: skip
    with Reporter(tmp_path / "[/red]", 1, 1e-5, console=console) as reporter:
        reporter.warn("[/bold] went wrong")
        reporter.round_done(row)
        reporter.finished([row], {})

    printed = stream.getvalue()
    assert r"excluded client 0: DataError: [/red] \x1b[2J" in printed
    assert "warning: [/bold] went wrong" in printed
    assert f"run directory  {tmp_path / '[/red]'}" in printed


def test_document_shows_text_as_it_is() -> None:
    blocks = [Paragraph(name) for name in NAMES] + [Bullets(NAMES), TableBlock(["name", *NAMES], [["x", *NAMES]])]
    page = to_html("$$ <i>", [Section("[/red] | x", blocks)])
    markdown = to_markdown("$$ <i>", [Section("[/red] | x", blocks)])

    assert "\x1b" not in page + markdown
    assert "<title>$$ &lt;i&gt;</title>" in page
    rendered = MARKDOWN.render(markdown)
    for name in NAMES[:-1]:
        assert f"<p>{html.escape(one_line(name), quote=False)}</p>" in rendered.replace("&quot;", '"')
        assert rendered.count(f">{html.escape(one_line(name), quote=False)}</td>") == 1


def test_figures_show_class_names_as_they_are(tmp_path: Path) -> None:
    counts = [dict.fromkeys(NAMES, 2 + client) for client in range(2)]
    figure = partitions_figure(counts)
    save_png(figure, tmp_path / "partitions.png")

    shown = legend_texts(figure)
    assert len(shown) == len(NAMES)
    for text, name in zip(shown, NAMES, strict=True):
        line = visible(name) if name.strip() else repr(name)
        assert text == (line if len(line) <= 48 else f"{line[:47]}…")
    assert not any(text.get_parse_math() for legend in figure.legends for text in legend.get_texts())
    assert (tmp_path / "partitions.png").stat().st_size > 5000


def test_dollar_signs_are_drawn(tmp_path: Path) -> None:
    images = []
    for label in ("$x$", "x"):
        figure = figures.new_figure(2, 1)
        set_literal(figure.text(0.1, 0.5, ""), label)
        stream = io.BytesIO()
        save_figure(figure, stream, format="svg", metadata={"Date": None})
        images.append(stream.getvalue().decode().count("<use "))
    assert images == [3, 1]


def test_many_classes_fit_into_a_figure(tmp_path: Path) -> None:
    figure = partitions_figure([{f"class {number}": 1 for number in range(1000)}], counted_unit("token_classification"))

    # A bar is longer than the number of examples if each has several labels.
    assert figure.axes[0].get_xlabel() == "labels of training examples"
    assert legend_texts(figure)[-2:] == ["class 38", "… and 961 more"]
    assert figure.get_figheight() < 10


def test_missing_glyphs_use_an_installed_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_fallback_font", lambda: "DejaVu Serif")
    figure = partitions_figure([{"中文": 1, "plain": 2}])
    save_figure(figure, io.BytesIO())

    chinese, plain = figure.legends[0].get_texts()
    assert chinese.get_fontfamily()[-1] == "DejaVu Serif"
    assert "DejaVu Serif" not in plain.get_fontfamily()


def test_failed_plot_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        plot_partitions([{"a": 1}], tmp_path / "file" / "plot.png")
        log_failure(lambda: (_ for _ in ()).throw(ValueError("two\nlines")))()

    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("plot_partitions failed (")
    assert r"ValueError: two\nlines" in second
    with pytest.raises(KeyboardInterrupt):
        log_failure(lambda: (_ for _ in ()).throw(KeyboardInterrupt))()
