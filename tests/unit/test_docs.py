"""The documentation site (mkdocs.yml). `make docs` checks its links and that nothing comes from other hosts."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
# Read as text, because the file has Python tags for MkDocs.
NAV = re.findall(r"^ +- .+: (\S+\.md)$", (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in NAV if (DOCS / page).exists()} == pages
    assert len(NAV) == len(set(NAV))
