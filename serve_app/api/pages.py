"""Static pages and assets of the web interface; nothing is loaded from other hosts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse
from markdown_it import MarkdownIt
from starlette.staticfiles import StaticFiles

from serve_app.errors import ProblemError

WEB = Path(__file__).resolve().parents[1] / "web"


STORES_NOTHING = "The service does not store the text."


def add_pages(app: FastAPI, card: str, text_days: int = 0) -> None:
    """Add the pages to an application.

    `card` is the model card as Markdown, empty without one; texts are kept for `text_days` days.
    """
    index = (WEB / "index.html").read_text(encoding="utf-8")
    assert STORES_NOTHING in index
    if text_days:
        index = index.replace(STORES_NOTHING, f"The service keeps the text for {text_days} days.")
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")  # HTML in a card is escaped
    template = (WEB / "card.html").read_text(encoding="utf-8")
    card_page = template.replace("<!-- card -->", markdown.render(card))

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(index)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(WEB / "docs.html")

    @app.get("/card", include_in_schema=False)
    async def model_card() -> HTMLResponse:
        if not card:
            raise ProblemError(404, "This version has no model card: it was not published by `jobs/publish.py`.")
        return HTMLResponse(card_page)

    app.mount("/static", StaticFiles(directory=WEB))
    app.mount("/swagger-ui", StaticFiles(directory=str(files("fastapi_offline") / "static")))
