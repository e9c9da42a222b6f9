"""The code of an exported model's card."""

import re
from pathlib import Path
from typing import Any


def run_card(folder: Path, text: str = "A text.") -> dict[str, Any]:
    """Execute the code of a model card, on another text if one is given, and return the names that it defines."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)).replace("A text.", text), names)
    return names
