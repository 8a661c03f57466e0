"""The example's page in a real browser, against the example's own server over a fake Bedrock."""

from collections.abc import Iterator

import pytest
from tests.e2e import tools
from tests.e2e.browser import Page, browse
from tests.e2e.serving import Served, served
from tests.running import TOKEN

from bedrock_proxy import tokens
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.simulator import Fault, start_in_thread

ANSWER = "document.querySelector('#answer').textContent"
STATUS = "document.querySelector('#status').textContent"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    tools.chromium()
    command = ("-m", "uvicorn", "--port", "{port}", "--log-level", "warning", "app:app")
    with (
        start_in_thread() as simulator,
        served(
            "client-javascript", command, "/", simulator, tmp_path_factory.mktemp("site")
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browse(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(site: Served, browser: Page) -> Iterator[Page]:
    site.simulator.reset()
    browser.open(f"{site.url}/")
    browser.fill("#token", TOKEN)
    yield browser
    assert [] == browser.complaints


def disabled(page: Page, button: str) -> bool:
    return bool(page.evaluate(f"document.querySelector('{button}').disabled"))


def test_text_appears_piece_by_piece(page: Page, site: Served) -> None:
    before = len(site.rows())
    site.simulator.script(
        pieces=("Blue light ", "scatters ", "more — 散乱 😀 <b>so</b>"), gate=True
    )
    page.fill("#prompt", "Why is the sky blue?")
    page.click("#ask")
    (call,) = site.simulator.wait_calls(1)
    call.release(3)  # message_start, content_block_start, the first piece
    page.wait(f"{ANSWER}.trim() === 'Blue light'", "the first piece, before there is a second")
    call.release()
    page.wait(f"{ANSWER}.trim() === 'Blue light scatters'", "the second piece")
    assert not call.finished
    assert ("Answering …", True, False) == (
        page.text("#status"),
        disabled(page, "#ask"),
        disabled(page, "#stop"),
    )
    call.release(100)
    page.wait(f"{STATUS} === 'Done.'", "the end of the answer")
    whole = "Blue light scatters more — 散乱 😀 <b>so</b>"
    assert whole == page.evaluate(ANSWER)
    assert (False, True) == (disabled(page, "#ask"), disabled(page, "#stop"))
    row = site.new_row(before)
    assert (Outcome.OK, Basis.REPORTED) == (row.outcome, row.basis)


def test_S01_stop_ends_the_answer_and_keeps_what_came(page: Page, site: Served) -> None:
    before = len(site.rows())
    site.simulator.script(events=400, output_tokens=900, pace=0.01)
    page.click("#ask")
    page.wait(f"{ANSWER}.length > 20", "some text")
    page.click("#stop")
    page.wait(f"{STATUS} === 'Stopped.'", "the stop")
    kept = page.evaluate(ANSWER)
    page.evaluate("new Promise((go) => setTimeout(go, 200))")
    assert kept == page.evaluate(ANSWER) != ""
    assert page.evaluate("document.querySelector('#error').hidden")
    assert (False, True) == (disabled(page, "#ask"), disabled(page, "#stop"))
    row = site.new_row(before)
    assert (Outcome.CLIENT_GONE, 900) == (row.outcome, row.output_tokens)


def test_a_refusal_is_shown_in_words(page: Page, site: Served) -> None:
    page.fill("#token", tokens.mint(bytes(32)))
    page.click("#ask")
    page.wait("!document.querySelector('#error').hidden", "the error")
    assert page.text("#error").startswith("The token is not valid.")
    assert "unauthorized" in page.text("#error")
    assert ("", "") == (page.evaluate(ANSWER), page.text("#status"))
    assert not disabled(page, "#ask")


def test_a_fault_in_the_middle_is_shown_below_what_came(page: Page, site: Served) -> None:
    before = len(site.rows())
    fault = Fault("exception", after=4, name="modelStreamErrorException")
    site.simulator.script(pieces=("As far ", "as this", " and", " on"), faults=(fault,))
    page.click("#ask")
    page.wait("!document.querySelector('#error').hidden", "the error")
    assert page.evaluate(ANSWER).startswith("As far ")
    row = site.new_row(before)  # settled after the error went out
    assert f"upstream_error · request {row.request_id}" in page.text("#error")


def test_everything_on_the_page_has_a_role_and_a_name(page: Page) -> None:
    told = page.accessible()
    for role, name in [
        ("heading", "Ask a model"),
        ("textbox", "Endpoint"),
        ("textbox", "Token"),
        ("textbox", "Model"),
        ("textbox", "Prompt"),
        ("button", "Ask"),
        ("button", "Stop"),
        ("status", "Answer"),
    ]:
        assert (role, name) in told
    assert "password" == page.evaluate("document.querySelector('#token').type")
