"""Hooks of MkDocs: pages outside docs/, links to files of the repository, diagrams without a CDN."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = "https://github.com/detect-ai/detect-ai"
CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "detect_ai/corpus/sample/README.md": "sample.md",
    **{name: name for name in ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "ROADMAP.md", "SECURITY.md")},
}
MERMAID = CHECKOUT / ".venv" / "mermaid.min.js"  # put there by `make docs`
ASSET = "assets/javascripts/mermaid.min.js"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
EXTERNAL = re.compile(
    r'<(?:script|img|iframe)\b[^>]*\ssrc="?(?:https?:)?//[^">]*|<link rel="stylesheet" href="https?://[^">]*'
)
BADGES = re.compile(r"^\[!\[.*\n", re.MULTILINE)  # images of other hosts


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and Mermaid."""
    if not MERMAID.is_file():
        raise PluginError(f"{MERMAID} is missing: build the site with `make docs`")
    for path, uri in (*PAGES.items(), (MERMAID.relative_to(CHECKOUT).as_posix(), ASSET)):
        files.append(File.generated(config, uri, abs_src_path=str(CHECKOUT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Resolve the links of a page as GitHub does: to a page of the site, else to a file of the repository."""
    source = {uri: path for path, uri in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def resolve(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        uri = PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else "")
        if files.get_file_from_path(uri):
            return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))
        kind = "tree" if (CHECKOUT / target).is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{target}" if (CHECKOUT / target).exists() else link[0]

    return LINK.sub(resolve, BADGES.sub("", markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse what a browser would load from other hosts; load Mermaid, which is large, on pages with a diagram only."""
    if loaded := EXTERNAL.search(output):
        raise PluginError(f"{page.file.src_uri}: a reader's browser would load {loaded[0]}")
    if 'class="mermaid"' not in output:
        return output
    script = posixpath.relpath(ASSET, page.url)
    return output.replace("</head>", f'<script src="{script}"></script></head>', 1)
