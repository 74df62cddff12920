"""The web page in Chromium, driven by Playwright.

`python -m tests.e2e.test_page URL TEXTFILE PNG` takes the screenshot of the README from a running service.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect, sync_playwright

from tests.fixtures import tiny_models

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = ViewportSize(width=860, height=800)
PHONE = ViewportSize(width=390, height=800)
PICTURE = ViewportSize(width=860, height=1060)
CANARY = "<img src=x onerror=document.title='owned'>"
TEXT = tiny_models.text("human", random.Random(5), 90)
VERDICTS = ["No sign of AI", "Likely AI-generated", "Uncertain: between human and AI"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium from CHROMIUM or the PATH, else the one of `playwright install`."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            missing = (
                "no Chromium: `apt-get install chromium`, `.venv/bin/playwright install chromium`, or set CHROMIUM"
            )
            (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(missing)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The loaded page. Checks afterwards: no script error, no policy violation, no request to another site."""
    errors: list[str] = []
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else errors.append(request.url))
        page.goto(url)
        expect(page.locator("#version")).not_to_have_text("…")
        yield page
        assert [error for error in errors if "status of 4" not in error] == []


def check(page: Page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Check text").click()
    expect(page.locator("#result")).to_be_visible()


def as_ai(route: Route) -> None:
    """Return the response of the service with the label `ai`."""
    response = route.fetch()
    [verdict] = response.json()["verdicts"]
    route.fulfill(response=response, json={**response.json(), "verdicts": [{**verdict, "label": "ai"}]})


def test_verdict_comes_with_its_numbers(page: Page) -> None:
    page.route("**/v1/detect", as_ai)
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("Done")
    assert page.locator("#verdict").inner_text().startswith("Likely AI-generated")
    assert "labels up to 11 of 100 AI" in page.locator("#meaning").inner_text()
    assert page.locator("#probability").inner_text().endswith("%")
    assert "of 100" in page.locator("#p-value").inner_text()


def test_text_is_never_shown_as_html(page: Page) -> None:
    check(page, f"{TEXT} {CANARY}. {TEXT}")
    assert "onerror=document.title" in page.locator("#result").inner_text()
    assert page.locator("#result img").count() == 0
    assert page.title().startswith("detect_ai")


def test_highlighted_sentences_match_the_text_after_an_emoji(page: Page) -> None:
    parts = tiny_models.text("ai", random.Random(6), 90)[:-1].split(". ")
    sentences = [f"\U0001f642 {sentence}." for sentence in parts]
    check(page, "  ".join(sentences))
    assert page.locator("#sentences mark").all_inner_texts() == sentences


def test_short_text_gets_no_number(page: Page) -> None:
    check(page, "Too short.")
    assert page.locator("#verdict").inner_text() == "Uncertain: too short"
    assert "too short" in page.locator("#reasons").inner_text()
    expect(page.locator("#numbers")).to_be_hidden()


def test_content_that_is_not_prose_is_shown(page: Page) -> None:
    check(page, TEXT)
    expect(page.locator("#content")).to_be_hidden()
    check(page, TEXT + "\n" + "def rain(train):\n    return train + 1\n" * 8)
    expect(page.locator("#content")).to_have_text(re.compile(r"^Read as: \d+% prose, \d+% code\.$"))


def test_hidden_characters_are_counted(page: Page) -> None:
    check(page, TEXT.replace("the", "th\u200be"))
    assert page.locator("#tampering").inner_text() == f"{TEXT.count('the')} × invisible characters"


def test_selected_target_is_sent(page: Page) -> None:
    page.get_by_label("Target false positive rate").select_option(index=1)
    with page.expect_request("**/v1/detect") as request:
        check(page, TEXT)
    assert request.value.post_data_json["target_fpr"] == 0.1


def test_accusations_are_put_into_numbers(page: Page) -> None:
    def with_rates(route: Route) -> None:
        info = route.fetch().json()
        for threshold, tpr in zip(info["thresholds"], (0.55, None), strict=True):
            threshold.update(fpr_upper_bound=0.02, detection_rate=tpr)
        route.fulfill(json=info)

    page.route("**/v1/model", with_rates)
    page.reload()
    expect(page.locator("#precision tr")).to_have_count(4)
    assert page.locator("#precision tr").nth(1).inner_text().split("\t") == ["5 of 100", "59 of 100 times"]
    assert "human texts like its calibration texts AI" in page.locator("#rates").inner_text()
    assert "finds 55 of 100 AI texts" in page.locator("#rates").inner_text()
    assert "up to 45%" in page.locator("#class-of-30").inner_text()
    page.get_by_label("Target false positive rate").select_option(index=1)
    expect(page.locator("#precision-table")).to_be_hidden()
    assert "not measured" in page.locator("#rates").inner_text()


def test_the_population_is_named(page: Page) -> None:
    name = "essays of our <b>students"

    def of_population(route: Route) -> None:
        info = route.fetch().json()
        route.fulfill(json={**info, "compared_with": "population", "population": name})

    def judged(route: Route) -> None:
        response = route.fetch()
        [verdict] = response.json()["verdicts"]
        changed = {**verdict, "compared_with": "population", "nearest_domain": name, "label": "human", "reasons": []}
        route.fulfill(response=response, json={**response.json(), "verdicts": [changed]})

    expect(page.locator("#population")).to_be_hidden()
    page.route("**/v1/model", of_population)
    page.route("**/v1/detect", judged)
    page.reload()
    expect(page.locator("#population")).to_be_visible()
    for place in ("#population", "#rates"):
        expect(page.locator(place)).to_contain_text(name)
    check(page, TEXT)
    expect(page.locator("#p-value")).to_contain_text(name)


@pytest.mark.parametrize("how", ["chosen", "dropped"])
def test_file_is_read_and_its_text_shown(page: Page, how: str) -> None:
    if how == "chosen":
        file = {"name": "a.txt", "mimeType": "text/plain", "buffer": TEXT.encode()}
        page.get_by_label("Or a file").set_input_files(file)
    else:
        script = "text => { const data = new DataTransfer(); data.items.add(new File([text], 'a.md')); return data; }"
        page.locator("#text").dispatch_event("drop", {"dataTransfer": page.evaluate_handle(script, TEXT)})
    expect(page.locator("#result")).to_be_visible()
    assert page.get_by_label("Text", exact=True).input_value() == TEXT
    assert page.locator("#verdict").inner_text() in VERDICTS


def test_errors_of_the_service_are_shown(page: Page) -> None:
    file = {"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"no pdf"}
    page.get_by_label("Or a file").set_input_files(file)
    expect(page.locator("#status")).to_contain_text("a.pdf: ")
    expect(page.locator("#status")).to_have_class("error")
    page.get_by_label("Text", exact=True).fill("word " * 50_000)
    page.get_by_role("button", name="Check text").click()
    expect(page.locator("#status")).to_contain_text("249999")
    expect(page.locator("#result")).to_be_hidden()


def test_api_key_is_kept_in_the_tab_only(page: Page) -> None:
    problem = {"title": "Unauthorized", "status": 401, "detail": "Expected the header", "request_id": "r"}

    def only_with_key(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer dai_right":
            route.continue_()
        else:
            route.fulfill(status=401, json=problem, headers={"Content-Type": "application/problem+json"})

    page.route("**/v1/**", only_with_key)
    expect(page.get_by_label("API key")).to_be_hidden()
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_role("button", name="Check text").click()
    for key in ("dai_wrong", "dai_right"):
        expect(page.locator("#status")).to_have_class("error")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use key").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    check(page, TEXT)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def violations(page: Page) -> list[str]:
    """Accessibility violations that axe-core finds (WCAG 2.2 and best practices)."""
    rules = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html']} {node['failureSummary']}" for rule in rules for node in rule["nodes"]]


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_axe_finds_no_violation(page: Page, size: ViewportSize, scheme: Literal["light", "dark"]) -> None:
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    assert violations(page) == []
    page.get_by_label("Keep texts").check()
    text = TEXT.replace("the", "th\u200be")
    check(page, f"{text} {'x' * 300}. {TEXT}")
    page.get_by_text("Show as a list").click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.goto(f"{page.url}card")
    assert violations(page) == []


def test_history_is_kept_only_on_request(page: Page) -> None:
    check(page, TEXT)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.get_by_label("Keep texts").check()
    check(page, TEXT)
    verdict = page.locator("#verdict").inner_text()
    check(page, f"{CANARY} short")
    page.reload()
    assert page.locator("#past button").all_inner_texts() == [f"{CANARY} short", TEXT[:160].strip()]
    page.locator("#past button").nth(1).click()
    assert page.locator("#verdict").inner_text() == verdict
    page.evaluate("for (let i = 0; i < 25; i++) past.add(`text ${i}`, {label: 'human', reasons: []})")
    assert page.evaluate("past.all().map((entry) => entry.text)") == [f"text {i}" for i in range(24, 4, -1)]
    page.evaluate("localStorage.setItem('history', '[1, {torn')")
    page.reload()
    page.get_by_label("Keep texts").uncheck()
    assert page.locator("#past li").count() == 0
    assert page.evaluate("localStorage.length") == 0


def test_card_and_api_pages_work_without_another_site(page: Page, url: str) -> None:
    page.get_by_role("link", name="Model card").click()
    expect(page.get_by_role("heading", name="Model card: tiny")).to_be_visible()
    assert "<b>nothing</b>" in page.locator("blockquote").inner_text()
    page.goto(f"{url}/docs")
    expect(page.get_by_role("button", name="POST /v1/detect").first).to_be_visible()


def screenshot(url: str, text: str, path: Path, **context: Any) -> None:
    """Take a screenshot of the upper part of the page with the verdict of a text."""
    with chromium() as browser, browser.new_context(**{"viewport": PICTURE, **context}) as opened:
        page = opened.new_page()
        page.goto(url)
        check(page, text)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=path)


if __name__ == "__main__":
    screenshot(sys.argv[1], Path(sys.argv[2]).read_text(), Path(sys.argv[3]))
