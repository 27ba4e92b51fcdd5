"""The server's page in Chromium, over tiny models with random weights and a real server."""

import csv
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from gptmill.serve.access import Access
from gptmill.serve.engine import Engine
from tests.browser.conftest import PHONE, OpenPage, assert_fits, picture
from tests.unit.serve.conftest import Running, eventually, models, running, start

__all__ = ["models", "running", "start"]  # fixtures

CHAT, PLAIN = "instructions:latest", "text:latest"
PROMPT = "the cat sat on"
LONG = 4000  # tokens; more than a minute of them


def opened(open_page: OpenPage, running: Running, **options) -> Page:
    page = open_page(running.address, **options)
    expect(page.locator("#send")).to_be_enabled()
    return page


def ask(page: Page, text: str = PROMPT) -> None:
    page.get_by_label(re.compile("^(Message|Text to continue)$")).fill(text)
    page.keyboard.press("Enter")


def finished(page: Page) -> None:
    expect(page.locator(".turn .figures").last).to_contain_text("seed")


def posted(running: Running, path: str, body: dict) -> dict:
    return httpx.post(f"{running.address}{path}", json=body).raise_for_status().json()


@pytest.fixture
def chat(open_page: OpenPage, running: Running) -> Page:
    """The page after a short answer."""
    page = opened(open_page, running)
    page.get_by_label("Tokens at most").fill("12")
    ask(page)
    finished(page)
    return page


def test_every_control_reaches_the_answer(open_page: OpenPage, running: Running) -> None:
    page = opened(open_page, running)
    bodies = []
    page.on("request", lambda asked: bodies.append(asked.post_data_json))
    wanted = {
        "Temperature": 1.5, "Top-k": 30, "Top-p": 0.85, "Min-p": 0.02, "Repetition penalty": 1.2,
        "Tokens at most": 20, "Seed": 7, "Stop at": "qq\nzz",
    }  # fmt: skip
    for label, value in wanted.items():
        page.get_by_label(label).fill(str(value))
    ask(page)
    finished(page)
    (body,) = bodies
    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "num_predict", "seed")
    assert body["options"] == {**dict(zip(names, wanted.values())), "stop": ["qq", "zz"]}
    answer = posted(running, "/api/chat", {**body, "stream": False})["message"]["content"]
    assert answer and page.locator(".answer").text_content().removesuffix("■ end") == answer
    page.get_by_role("button", name="Defaults").click()
    expect(page.get_by_label("Top-k")).to_have_value("40")
    expect(page.locator("output[for=temperature]")).to_have_text("0.00")


def test_a_plain_model_continues_the_text(open_page: OpenPage, running: Running) -> None:
    page = opened(open_page, running)
    page.get_by_label("Model", exact=True).select_option(PLAIN)
    expect(page.locator("output[for=temperature]")).to_have_text("0.80")
    page.get_by_label("Temperature").fill("0")
    ask(page)
    finished(page)
    options = {"temperature": 0, "num_predict": 128}
    body = {"model": PLAIN, "prompt": PROMPT, "raw": True, "stream": False, "options": options}
    written = posted(running, "/api/generate", body)["response"]
    assert page.locator(".answer").text_content().removesuffix("■ end") == PROMPT + written


@pytest.fixture
def slow(start: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server of 50 tokens a second at most; the greedy answer of its plain model never ends.

    At full speed a model this small has ended, or flooded the page, before a busy machine stops it.
    """
    step = Engine._step

    def delayed(engine: Engine) -> None:
        time.sleep(0.02)
        step(engine)

    monkeypatch.setattr(Engine, "_step", delayed)
    with start(max_tokens=LONG) as own:
        yield own


@pytest.mark.parametrize("stop", ["button", "key"])
def test_an_answer_comes_bit_by_bit_and_can_be_stopped(
    stop: str, open_page: OpenPage, slow: Running
) -> None:
    page = opened(open_page, slow)
    page.get_by_label("Model", exact=True).select_option(PLAIN)
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens at most").fill(str(LONG))
    ask(page)
    tokens = page.locator(".token")
    tokens.nth(3).wait_for()
    button = page.get_by_role("button", name="Stop")
    expect(button).to_be_visible()
    button.click() if stop == "button" else page.keyboard.press("Escape")
    expect(page.locator(".figures")).to_have_text(re.compile(r"^\d+ tokens, stopped$"))
    count = tokens.count()
    assert 3 < count < LONG
    assert page.locator("#status").text_content().startswith("Stopped after: ")
    expect(page.locator("#send")).to_be_visible()
    engine = slow.service._open["text"].engine
    eventually(lambda: not engine._running)  # the server has stopped too
    assert tokens.count() == count


def test_two_models_answer_the_same_prompt_side_by_side(
    open_page: OpenPage, running: Running
) -> None:
    page = opened(open_page, running)
    bodies = []
    page.on("request", lambda asked: bodies.append(asked.post_data_json))
    page.get_by_label("Beside it").select_option("long:latest")
    page.get_by_label("Tokens at most").fill("12")
    ask(page)
    figures = page.locator(".pair .figures")
    for at in range(2):
        expect(figures.nth(at)).to_contain_text("seed")
    assert sorted(body["model"] for body in bodies) == [CHAT, "long:latest"]
    assert bodies[0]["options"] == bodies[1]["options"]
    assert page.locator(".asked").count() == 1
    assert page.locator(".pair .who").all_text_contents() == ["instructions", "long"]
    shown = [text.removesuffix("■ end") for text in page.locator(".answer").all_text_contents()]
    for body in bodies:
        answer = posted(running, "/api/chat", {**body, "stream": False})["message"]["content"]
        assert shown[body["model"] != CHAT] == answer
    left, right = (page.locator(".pair .turn").nth(at).bounding_box() for at in range(2))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert_fits(page)
    picture(page, "compared")
    page.set_viewport_size(PHONE["viewport"])
    left, right = (page.locator(".pair .turn").nth(at).bounding_box() for at in range(2))
    assert left["x"] == right["x"] and left["y"] + left["height"] <= right["y"]
    assert_fits(page)
    picture(page, "compared on a phone")


def test_each_of_two_models_has_a_conversation_of_its_own(
    open_page: OpenPage, running: Running
) -> None:
    page = opened(open_page, running)
    bodies = []
    page.on("request", lambda asked: bodies.append(asked.post_data_json))
    page.get_by_label("Beside it").select_option(PLAIN)
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_label("Send the earlier turns").check()
    for turn in (1, 2):
        ask(page)
        for at in range(2 * turn):
            expect(page.locator(".figures").nth(at)).to_contain_text("seed")
    chats = [body["messages"] for body in bodies if body["model"] == CHAT]
    answers = [text.removesuffix("■ end") for text in page.locator(".answer").all_text_contents()]
    assert [message["content"] for message in chats[1]] == [PROMPT, answers[0], PROMPT]
    assert [body["prompt"] for body in bodies if body["model"] == PLAIN] == [PROMPT, PROMPT]
    page.get_by_label("Beside it").select_option("no other")
    assert page.locator(".turn").count() == 0
    ask(page)
    finished(page)
    assert page.locator(".answer").count() == 1


def test_earlier_turns_go_along_when_asked_to(chat: Page) -> None:
    bodies = []
    chat.on("request", lambda asked: bodies.append(asked.post_data_json))
    first = chat.locator(".answer").text_content().removesuffix("■ end")
    ask(chat, "alone")
    expect(chat.locator(".figures").nth(1)).to_contain_text("seed")
    chat.get_by_label("Send the earlier turns").check()
    ask(chat, "together")
    expect(chat.locator(".figures").nth(2)).to_contain_text("seed")
    alone, together = ([m["content"] for m in body["messages"]] for body in bodies)
    assert alone == ["alone"]
    assert [*together[:3], together[4]] == [PROMPT, first, "alone", "together"]
    chat.get_by_role("button", name="Start over").click()
    ask(chat, "anew")
    expect(chat.locator(".figures")).to_contain_text("seed")
    assert [m["content"] for m in bodies[-1]["messages"]] == ["anew"]


def chances(page: Page) -> list[str]:
    return page.locator("#chances li").all_inner_texts()


def test_candidates_are_those_of_the_model(chat: Page, running: Running) -> None:
    options = {"temperature": 0, "num_predict": 12}
    body = {
        "model": CHAT, "messages": [{"role": "user", "content": PROMPT}], "options": options,
        "stream": False, "logprobs": True, "top_logprobs": 8,
    }  # fmt: skip
    scored = posted(running, "/api/chat", body)["logprobs"]
    chat.locator(".token").nth(2).hover()
    shown = [text.split("\n") for text in chances(chat)]
    expected = scored[2]["top_logprobs"]
    assert [row[0] for row in shown] == [c["token"].replace(" ", "␣") for c in expected]
    for row, candidate in zip(shown, expected):
        share = 100 * math.exp(candidate["logprob"])
        assert float(row[1].strip("<%")) == pytest.approx(share, abs=0.6)
    assert shown[0][2] == "chosen"  # greedy
    widths = chat.locator("#chances li").evaluate_all(
        "items => items.map(item => Number(item.style.getPropertyValue('--chance')))"
    )
    assert widths == sorted(widths, reverse=True) and 0 < sum(widths) <= 1.0001


def test_candidates_by_keyboard_and_by_voice(chat: Page) -> None:
    answer = chat.locator(".answer")
    chat.get_by_label("Message").focus()
    for _ in range(3):  # past ‹ and › and the folded nothing between
        chat.keyboard.press("Shift+Tab")
        if answer.evaluate("node => node === document.activeElement"):
            break
    expect(answer).to_be_focused()
    seen = [chances(chat)]
    for key in ("ArrowRight", "ArrowRight", "End"):
        chat.keyboard.press(key)
        seen.append(chances(chat))
    assert len({tuple(each) for each in seen}) == 4
    expect(chat.locator(".token.shown")).to_have_count(1)
    spoken = chat.locator("#status").text_content()
    assert re.search(r"^.*%\. Instead: .*%; .*%; .*%$", spoken)
    expect(chat.get_by_role("button", name="Next token")).to_be_disabled()
    chat.get_by_role("button", name="Previous token").click()
    assert chances(chat) != seen[-1]


def test_candidates_by_touch(open_page: OpenPage, running: Running) -> None:
    page = opened(open_page, running, **PHONE)
    ask(page)
    finished(page)
    page.locator(".token").nth(1).tap()
    expect(page.locator("#chances li").first).to_be_visible()


def test_the_classifier_shows_its_probabilities(open_page: OpenPage, running: Running) -> None:
    page = opened(open_page, running)
    page.get_by_role("tab", name="Write").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Classify")).to_be_focused()
    texts = ["the cat sat", "<img src=x onerror=alert(1)>"]
    page.get_by_label("Texts").fill("\n\n".join(texts))
    page.get_by_role("button", name="Classify").click()
    results = posted(running, "/classify", {"texts": texts})["results"]
    for item, text, result in zip(page.locator("#labels li").all(), texts, results):
        expect(item.locator("p")).to_have_text(text)
        expect(item.locator("dt.chosen")).to_have_text(result["label"])
        track, fill = item.locator(".track").first, item.locator(".fill").first
        share = fill.bounding_box()["width"] / track.bounding_box()["width"]
        assert share == pytest.approx(max(result["probabilities"].values()), abs=0.01)
    assert page.locator("#status").text_content().startswith(f"the cat sat: {results[0]['label']},")


def test_of_many_labels_the_likeliest_are_shown_and_the_others_folded(
    open_page: OpenPage, running: Running
) -> None:
    page = opened(open_page, running)
    many = {f"label_{i}": (i + 1) / 3003 for i in range(77)}
    reply = {"results": [{"label": "label_76", "probabilities": many}]}
    page.route("**/classify", lambda route: route.fulfill(json=reply))
    page.get_by_role("tab", name="Classify").click()
    page.get_by_label("Texts").fill("x")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_text("72 more")).to_be_visible()
    names = page.locator("#labels dt")
    shown = [name.text_content() for name in names.all() if name.is_visible()]
    assert shown == [f"label_{i}" for i in (76, 75, 74, 73, 72)]
    page.get_by_text("72 more").click()
    expect(names.last).to_be_visible()
    expect(names).to_have_count(77)


def test_a_failure_is_said(open_page: OpenPage, start: Callable) -> None:
    with start(max_batch=1) as own:
        page = opened(open_page, own)
    ask(page)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("No answer: ")
    expect(page.locator("#send")).to_be_visible()


def test_the_browser_has_nothing_to_complain_of(open_page: OpenPage, running: Running) -> None:
    page = opened(open_page, running)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.reload()
    expect(page.locator("#send")).to_be_enabled()
    ask(page)
    finished(page)
    page.get_by_role("tab", name="Classify").click()
    assert said == []


def test_enter_before_the_models_are_known_keeps_the_text(
    open_page: OpenPage, running: Running
) -> None:
    page = opened(open_page, running)
    held = []
    page.route("**/api/tags", lambda route: held.append(route))
    with page.expect_request("**/api/tags"):
        page.reload()
    ask(page)
    expect(page.get_by_label("Message")).to_have_value(PROMPT)
    expect(page.get_by_role("button", name="Start over")).to_be_disabled()
    expect(page.locator(".turn")).to_have_count(0)
    held[0].continue_()
    expect(page.locator("#send")).to_be_enabled()
    page.keyboard.press("Enter")
    finished(page)


@pytest.mark.parametrize("look", ["light", "dark", "phone", "two"])
def test_it_is_readable_everywhere(
    look: str, open_page: OpenPage, running: Running, accessible: Callable[[Page], None]
) -> None:
    scheme = "dark" if look == "dark" else "light"
    options = PHONE if look == "phone" else {"color_scheme": scheme}
    page = opened(open_page, running, **options)
    if look == "two":
        page.get_by_label("Beside it").select_option("long:latest")
    ask(page)
    finished(page)
    page.locator(".token").first.click()
    picture(page, f"page-{look}")
    assert_fits(page)
    accessible(page)
    page.get_by_role("tab", name="Classify").click()
    page.get_by_label("Texts").fill(PROMPT)
    page.get_by_role("button", name="Classify").click()
    page.locator("#labels li").wait_for()
    picture(page, f"page-classify-{look}")
    assert_fits(page)
    accessible(page)


def test_it_fits_the_narrowest_phone(open_page: OpenPage, running: Running) -> None:
    page = opened(open_page, running, viewport={"width": 320, "height": 640})
    ask(page)
    finished(page)
    assert_fits(page)


KEY = "a" * 32


def test_a_locked_server_asks_for_its_key(open_page: OpenPage, start: Callable) -> None:
    with start(Access("127.0.0.1", keys=(KEY,))) as locked:
        page = open_page(locked.address)
        key = page.get_by_label("This server asks for an API key")
        expect(key).to_be_focused()
        expect(page.locator("#send")).to_be_disabled()
        for given, works in [("b" * 32, False), (KEY, True)]:
            key.fill(given)
            page.keyboard.press("Enter")
            if not works:
                expect(page.get_by_role("alert").first).to_contain_text("not one of this server's")
        expect(page.locator("#send")).to_be_enabled()
        expect(key).to_be_hidden()
        page.get_by_label("Tokens at most").fill("5")
        ask(page)
        finished(page)
        page.reload()
        expect(page.locator("#send")).to_be_enabled()  # the tab knows the key


def test_a_conversation_is_saved_as_json(chat: Page, running: Running) -> None:
    """What is saved is enough to get the same answer again."""
    with chat.expect_download() as download:
        chat.get_by_role("button", name="Save as JSON").click()
    assert download.value.suggested_filename == "conversation.json"
    [turn] = json.loads(Path(download.value.path()).read_text())["turns"]
    body = {name: turn[name] for name in ("model", "options", "messages")}
    again = posted(running, "/api/chat", {**body, "stream": False})
    assert again["message"]["content"] == turn["answer"] and turn["options"]["seed"] >= 0
    chat.get_by_role("button", name="Start over").click()
    expect(chat.get_by_role("button", name="Save as JSON")).to_be_disabled()


def test_a_dropped_table_comes_back_with_labels(
    open_page: OpenPage, running: Running, tmp_path: Path
) -> None:
    """As `/classify` labels its texts, and as Python's own reader of CSV reads it."""
    rows = [["1", 'the "cat", sat'], ["2", ""], ["3", "on\nthe mat"], ["4", "hill"]]
    table = tmp_path / "mine.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    page = opened(open_page, running)
    page.get_by_role("tab", name="Classify").click()
    dropped = page.evaluate_handle(
        "text => { const all = new DataTransfer(); all.items.add(new File([text], 'mine.csv'));"
        " return all; }",
        table.read_bytes().decode(),
    )
    page.dispatch_event("#classify", "drop", {"dataTransfer": dropped})
    expect(page.get_by_label("Column to read")).to_have_value("1")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download with labels").click()
    assert download.value.suggested_filename == "mine-labeled.csv"
    with Path(download.value.path()).open(newline="", encoding="utf-8") as file:
        head, *labeled = csv.reader(file)
    assert head == ["id", "text", "label", "probability"]
    assert [row[:2] for row in labeled] == rows and labeled[1][2:] == ["", ""]
    for _, text, label, probability in labeled:
        if text:
            expected = posted(running, "/classify", {"text": text})
            assert label == expected["label"]
            assert float(probability) == pytest.approx(expected["probabilities"][label], abs=1e-6)
    expect(page.locator("#labeled")).to_have_text("3 texts labeled, 1 empty")
    page.get_by_label("Or a CSV file").set_input_files(table)
    expect(page.locator("#labeled")).to_have_text("mine.csv: 4 rows")
    picture(page, "table")
