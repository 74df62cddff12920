"""The page in a real browser: Debian's Chromium, driven by Playwright.

`python -m tests.e2e.test_page URL TEXTFILE PNG` takes the picture of the README from a running service.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect, sync_playwright

from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import read_spec
from tests.e2e.conftest import foreground, listening
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
VERDICTS = ["No sign of AI", "Likely AI-generated", "Can't tell: between human and AI"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium from CHROMIUM or the PATH, else the one that `playwright install` brought."""
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
def service(store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """Process and URL of `make serve`."""
    with foreground(store, tmp_path_factory.mktemp("page") / "log") as (process, found):
        yield process.pid, found


@pytest.fixture
def url(service: tuple[int, str]) -> str:
    return service[1]


def test_a_service_in_the_foreground_listens_on_loopback_only(service: tuple[int, str]) -> None:
    assert listening(service[0]) == {"127.0.0.1"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of: scripts, policy, requests to other places."""
    return []


@pytest.fixture
def page(browser: Browser, url: str, complaints: list[str]) -> Iterator[Page]:
    """The page, loaded; nothing may come from elsewhere and nothing may fail."""
    with browser.new_context(viewport=DESKTOP) as context:
        made = context.new_page()
        made.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.on("request", lambda request: None if request.url.startswith(url) else complaints.append(request.url))
        made.goto(url)
        expect(made.locator("#version")).not_to_have_text("…")
        yield made


def check(page: Page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Check the text").click()
    expect(page.locator("#result")).to_be_visible()


def test_a_pasted_text_gets_a_verdict_in_words(page: Page) -> None:
    check(page, TEXT)
    assert page.locator("#verdict").inner_text() in VERDICTS
    assert page.locator("#probability").inner_text().endswith("%")
    assert "of 100 score at least this high" in page.locator("#p-value").inner_text()


def test_who_is_called_ai_reads_how_often_that_is_wrong_and_how_sure_that_is(page: Page, tiny_bundle: Path) -> None:
    target = read_spec(tiny_bundle).calibration.thresholds[0.05]
    page.route("**/v1/detect", as_ai)
    check(page, TEXT)
    said = page.locator("#meaning").inner_text()
    assert "like the 40 it was compared with, about 5 of 100 are called AI" in said
    assert f"it could be {round(100 * target.fpr_bound)} of 100" in said


def as_ai(route: Route) -> None:
    """The service's answer, with the label changed."""
    answer = route.fetch()
    route.fulfill(
        response=answer, json={**answer.json(), "verdicts": [{**answer.json()["verdicts"][0], "label": "ai"}]}
    )


def test_the_browser_has_nothing_to_complain_of(page: Page, complaints: list[str]) -> None:
    check(page, TEXT)
    assert complaints == []


def test_a_text_is_shown_as_text_never_as_html(page: Page, complaints: list[str]) -> None:
    check(page, f"{TEXT} {CANARY}. {TEXT}")
    assert "onerror=document.title" in page.locator("#result").inner_text()
    assert page.locator("#result img").count() == 0
    assert page.title().startswith("detect_ai")
    assert complaints == []


def test_highlighted_sentences_are_those_of_the_text_also_after_an_emoji(page: Page) -> None:
    sentences = [
        f"\U0001f642 {sentence}." for sentence in tiny_models.text("ai", random.Random(6), 90)[:-1].split(". ")
    ]
    check(page, "  ".join(sentences))
    assert page.locator("#sentences mark").all_inner_texts() == sentences


def test_ctrl_enter_checks_the_text(page: Page) -> None:
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Done")


def test_a_short_text_gets_no_number_that_could_mislead(page: Page) -> None:
    check(page, "Too short.")
    assert page.locator("#verdict").inner_text() == "Can't tell: too short"
    assert "too short" in page.locator("#reasons").inner_text()
    expect(page.locator("#numbers")).to_be_hidden()


def test_hidden_characters_are_counted(page: Page) -> None:
    check(page, TEXT.replace("the", "th\u200be"))
    count = TEXT.count("the")
    assert page.locator("#tampering").inner_text() == f"{count} × invisible characters"


def test_targets_are_those_of_the_model(page: Page) -> None:
    assert page.locator("#target option").all_inner_texts() == ["about 5 of 100", "about 10 of 100"]


def test_the_target_chosen_is_the_one_asked_for(page: Page) -> None:
    page.get_by_label("called AI by mistake").select_option("about 10 of 100")
    with page.expect_request("**/v1/detect") as asked:
        check(page, TEXT)
    assert asked.value.post_data_json["target_fpr"] == 0.1


def test_an_error_is_said_in_the_words_of_the_service(page: Page) -> None:
    page.get_by_label("Text", exact=True).fill("word " * 50_000)
    page.get_by_role("button", name="Check the text").click()
    expect(page.locator("#status")).to_contain_text("249999 characters, at most 200000 are read")


def test_a_chosen_file_is_read_and_its_text_shown(page: Page) -> None:
    page.get_by_label("Or a file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": TEXT.encode()})
    expect(page.locator("#result")).to_be_visible()
    assert page.get_by_label("Text", exact=True).input_value() == TEXT
    assert "".join(page.locator("#sentences").all_inner_texts()).strip() == TEXT
    assert page.locator("#verdict").inner_text() in VERDICTS


def test_a_dropped_file_is_read(page: Page) -> None:
    dropped = page.evaluate_handle(
        """text => {
          const data = new DataTransfer();
          data.items.add(new File([text], "a.md", { type: "text/markdown" }));
          return data;
        }""",
        TEXT,
    )
    page.locator("#text").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.locator("#result")).to_be_visible()
    assert page.get_by_label("Text", exact=True).input_value() == TEXT


def test_a_file_that_cannot_be_read_is_said_so_by_name(page: Page) -> None:
    page.get_by_label("Or a file").set_input_files(
        {"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"no pdf"}
    )
    expect(page.locator("#status")).to_contain_text("a.pdf: ")
    expect(page.locator("#status")).to_have_class("error")
    expect(page.locator("#result")).to_be_hidden()


def test_a_service_with_keys_is_asked_with_one_that_only_this_tab_keeps(page: Page) -> None:
    problem = {"title": "Unauthorized", "status": 401, "detail": "Expected the header", "request_id": "r"}

    def only_with_key(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer dai_right":
            route.continue_()
        else:
            route.fulfill(status=401, json=problem, headers={"Content-Type": "application/problem+json"})

    page.route("**/v1/**", only_with_key)
    expect(page.get_by_label("API key")).to_be_hidden()
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_role("button", name="Check the text").click()
    expect(page.locator("#status")).to_have_text("This service asks for an API key.")
    page.get_by_label("API key").fill("dai_wrong")
    page.get_by_role("button", name="Use the key").click()
    expect(page.locator("#status")).to_have_text("That key is not valid here.")
    page.get_by_label("API key").fill("dai_right")
    page.get_by_role("button", name="Use the key").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    check(page, TEXT)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    page.set_viewport_size(PHONE)
    check(page, f"{TEXT} {'x' * 300}. {TEXT}")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_every_control_has_a_name(page: Page) -> None:
    controls = page.locator("textarea, select, button, input").all()
    names = [control.evaluate("c => (c.labels?.[0] ?? c).textContent.trim()") for control in controls]
    assert all(names)


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong for people who cannot see or use a mouse, by the rules of WCAG 2.2 and its own."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html']} {node['failureSummary']}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_to_mend(page: Page, colours: str, size: ViewportSize) -> None:
    page.set_viewport_size(size)
    page.get_by_label("Colours").select_option(colours)
    assert violations(page) == []
    page.get_by_label("Keep texts").check()
    check(page, TEXT.replace("the", "th\u200be"))
    page.get_by_text("The same as a list").click()
    assert violations(page) == []
    page.get_by_label("Text", exact=True).fill("Too short.")
    page.get_by_role("button", name="Check the text").click()
    expect(page.locator("#verdict")).to_have_text("Can't tell: too short")
    assert violations(page) == []
    page.goto(f"{page.url}card")
    assert violations(page) == []


def test_axe_would_find_a_control_without_a_name(page: Page) -> None:
    page.evaluate("document.querySelector('label[for=text]').remove()")
    page.evaluate("document.querySelector('#text').removeAttribute('placeholder')")
    assert "label" in [each.partition(":")[0] for each in violations(page)]


def test_colours_are_those_of_the_system_until_others_are_chosen(browser: Browser, url: str) -> None:
    def background(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with browser.new_context(color_scheme="dark") as context:
        page = context.new_page()
        page.goto(url)
        dark = background(page)
        page.get_by_label("Colours").select_option("light")
        assert background(page) != dark
        page.reload()
        assert page.get_by_label("Colours").input_value() == "light"
        assert background(page) != dark
        page.get_by_label("Colours").select_option("as the system")
        assert background(page) == dark


def test_nothing_is_kept_unless_asked_for(page: Page) -> None:
    check(page, TEXT)
    page.reload()
    assert page.locator("#past li").count() == 0
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_history_is_kept_in_this_browser_and_shown_again(page: Page) -> None:
    page.get_by_label("Keep texts").check()
    check(page, TEXT)
    verdict = page.locator("#verdict").inner_text()
    check(page, f"{CANARY} short")
    page.reload()
    assert page.locator("#past button").all_inner_texts() == [f"{CANARY} short", TEXT[:160].strip()]
    page.route("**/v1/detect", lambda route: route.abort())
    page.locator("#past button").nth(1).click()
    assert page.locator("#verdict").inner_text() == verdict
    assert page.get_by_label("Text", exact=True).input_value() == TEXT
    page.get_by_label("Keep texts").uncheck()
    assert page.locator("#past li").count() == 0
    assert page.evaluate("localStorage.length") == 0


def test_of_a_long_history_the_oldest_makes_room(page: Page) -> None:
    page.get_by_label("Keep texts").check()
    page.evaluate("for (let i = 0; i < 25; i++) past.add(`text ${i}`, {label: 'human', reasons: []})")
    assert page.evaluate("past.all().map((entry) => entry.text)") == [f"text {i}" for i in range(24, 4, -1)]
    page.evaluate("for (let i = 0; i < 9; i++) past.add(`${i}` + 'x'.repeat(9e5), {label: 'human', reasons: []})")
    kept = page.evaluate("past.all().map((entry) => entry.text[0])")
    assert kept[0] == "8"
    assert 2 <= len(kept) < 9


@pytest.mark.parametrize("found", ["{torn", "5", '[1, {"text": 5}]'])
def test_what_something_else_wrote_into_the_history_is_left_out(page: Page, found: str) -> None:
    page.evaluate("(found) => localStorage.setItem('history', found)", found)
    page.reload()
    check(page, TEXT)
    assert page.locator("#past button").count() == 1


def test_a_browser_that_keeps_nothing_shows_verdicts_all_the_same(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied') }})")
        page.goto(url)
        check(page, TEXT)
        assert page.locator("#verdict").inner_text() in VERDICTS


def test_the_model_card_is_a_page_where_markup_is_text(page: Page, complaints: list[str]) -> None:
    page.get_by_role("link", name="Model card").click()
    expect(page.get_by_role("heading", name="Model card: tiny")).to_be_visible()
    assert page.get_by_role("cell").all_inner_texts() == ["5%", "3.0%"]
    assert "<b>nothing</b>" in page.locator("blockquote").inner_text()
    assert complaints == []


def test_the_api_page_works_without_another_site(page: Page, url: str, complaints: list[str]) -> None:
    page.goto(f"{url}/docs")
    expect(page.get_by_role("button", name="POST /v1/detect Detect")).to_be_visible()
    assert complaints == []


def picture(url: str, text: str, path: Path, **context: Any) -> None:
    """A picture of the page with the verdict on a text: its upper part, which keeps the file small."""
    with chromium() as browser, browser.new_context(**{"viewport": PICTURE, **context}) as made:
        page = made.new_page()
        page.goto(url)
        check(page, text)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=path)


if __name__ == "__main__":
    picture(sys.argv[1], Path(sys.argv[2]).read_text(), Path(sys.argv[3]))
