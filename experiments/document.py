"""Puts the tables of ``experiments/results`` into the pages that show them: ``python experiments/document.py``."""

from __future__ import annotations

import re
from pathlib import Path

from runs import HERE

from scripts.files import whole_file

PAGES = [HERE.parent / "docs" / "about" / name for name in ("paper.md", "paper_figures.md", "experiments.md")]
BLOCK = re.compile(r"(<!-- (results/\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, folder: Path = HERE) -> str:
    """The text with the content of each file that a comment names, up to the next comment ``end``."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{(folder / block[2]).read_text()}\n{block[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        with whole_file(page) as temporary:
            temporary.write_text(with_tables(page.read_text()))
