"""The documentation site: `sphinx-build -c docs/site . build/site`, from the root of the repository."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

project = "fedsvd"
version = release = re.findall(r'^__version__ = "(.*)"', (ROOT / "fedsvd" / "__init__.py").read_text(), re.MULTILINE)[0]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/site/index"
include_patterns = ["*.md", "docs/*.md", "docs/site/*.rst"]
# Names in backticks; those that the page does not document stay text.
default_role = "py:obj"
# Links from page to page name headings, as on GitHub.
myst_heading_anchors = 4
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
html_theme = "alabaster"
html_theme_options = {"description": "Federated LoRA under differential privacy", "page_width": "1100px"}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
