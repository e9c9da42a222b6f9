"""Templates of the pages. They are Python, since Flower sends no HTML to the machines of a federation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jinja2

from fedsvd.report.literal import one_line

_STYLE = """\
  :root { color-scheme: light; }
  body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem;
    margin: 0 auto; padding: 1.5rem; }
  h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
  h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 2px solid #0072b2; }
  p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
  ul { max-width: 46rem; padding-left: 1.3rem; }
  li { margin: .35rem 0; overflow-wrap: anywhere; }
  nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; max-width: none; }
  a { color: #0072b2; }
  .note { color: #555; font-size: .9rem; }
  .warning { border-left: 4px solid #d55e00; padding-left: .75rem; }
  .scroll { overflow-x: auto; margin: 1rem 0; }
  table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
  caption { text-align: left; font-weight: 600; padding-bottom: .3rem; white-space: nowrap; }
  th, td { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0;
    border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
  thead th { border-bottom: 1px solid #555; }
  tr > :nth-child(n+2):not(:nth-child(2):last-child) { overflow-wrap: break-word; }
  .right { text-align: right; overflow-wrap: normal; white-space: nowrap; }
  figure { margin: 1.2rem 0; }
  figure img { max-width: 100%; height: auto; }
  figcaption { color: #444; font-size: .9rem; max-width: 46rem; }
  @media print {
    body { font-size: 10pt; max-width: none; padding: 0; }
    nav { display: none; }
    h2 { break-after: avoid; }
    figure, tr { break-inside: avoid; }
    .scroll { overflow: visible; }
  }
"""

_BLOCKS = """\
{% for block in section.blocks %}
{% set kind = kind_of(block) %}
{% if kind == "Paragraph" %}
<p{% if block.kind %} class="{{ block.kind }}"{% endif %}>{{ block.text }}</p>
{% elif kind == "Bullets" %}
<ul>
{% for item in block.items %}
  <li>{{ item }}</li>
{% endfor %}
</ul>
{% elif kind == "TableBlock" %}
<div class="scroll"><table>
{% if block.caption %}
<caption>{{ block.caption }}</caption>
{% endif %}
<thead><tr>
{% for heading in block.headings %}
  <th scope="col"{% if block.right_aligned[loop.index0] %} class="right"{% endif %}>{{ heading }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in block.rows %}
<tr>
{% for cell in row %}
  <td{% if block.right_aligned[loop.index0] %} class="right"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% elif kind == "FigureBlock" %}
<figure>
<img src="{{ block.source }}" alt="{{ block.alt_text }}">
<figcaption>{{ block.caption }}</figcaption>
</figure>
{% endif %}
{% endfor %}
"""

_SECTIONS = """\
{% for section in sections %}
<section aria-labelledby="s{{ loop.index }}">
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
{% include "blocks.html" %}
</section>
{% endfor %}
"""

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
{% include "style.css" %}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<nav aria-label="contents"><ul>
{% for section in sections %}
  <li><a href="#s{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
</ul></nav>
<main>
{% include "sections.html" %}
</main>
</body>
</html>
"""

_NOTEBOOK = """\
<div class="fedsvd-report">
<style>
  .fedsvd-report { max-width: 60rem; }
  .fedsvd-report p, .fedsvd-report li, .fedsvd-report figcaption { max-width: 46rem; overflow-wrap: anywhere; }
  .fedsvd-report .note { opacity: .75; font-size: .9rem; }
  .fedsvd-report .warning { border-left: 4px solid #d55e00; padding-left: .75rem; }
  .fedsvd-report .scroll { overflow-x: auto; margin: 1rem 0; }
  .fedsvd-report caption { text-align: left; font-weight: 600; white-space: nowrap; }
  .fedsvd-report th, .fedsvd-report td { text-align: left; vertical-align: top; }
  .fedsvd-report .right { text-align: right; white-space: nowrap; }
  .fedsvd-report figure { margin: 1rem 0; }
  .fedsvd-report img { max-width: 100%; height: auto; background: #fff; }
  .fedsvd-report summary { cursor: pointer; font-weight: 600; margin: .4rem 0; }
</style>
{% for section in sections %}
<details{% if loop.index <= num_open %} open{% endif %}>
<summary>{{ section.title }}</summary>
{% include "blocks.html" %}
</details>
{% endfor %}
</div>
"""

_TEMPLATES = MappingProxyType(
    {
        "style.css": _STYLE,
        "blocks.html": _BLOCKS,
        "sections.html": _SECTIONS,
        "page.html": _PAGE,
        "notebook.html": _NOTEBOOK,
    }
)


def environment(more: Mapping[str, str] = MappingProxyType({})) -> jinja2.Environment:
    """Return the templates by name, and more of them.

    Names and failure reasons come from clients and command lines, so everything is escaped.
    """
    return jinja2.Environment(
        loader=jinja2.DictLoader({**_TEMPLATES, **more}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=one_line,
    )
