"""The chat page in a real browser, without a window; it is Debian's, for playwright's own is a download."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server.raw import at_rest, wait_for
from tests.server.running import Running

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e .[test]")

Page = Any
CHAT = "**/v1/chat/completions"
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> **é** 你好'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as tool:
        with tool.chromium.launch(executable_path=path, args=["--no-sandbox"]) as one:
            yield one


@pytest.fixture
def visit(browser: Any, server: Running) -> Iterator[Callable[..., Page]]:
    """Opens the page in a browser of its own; it must ask no other host, and say nothing to the console."""
    contexts, said, asked = [], [], []

    def go(url: str = server.url, **options: Any) -> Page:
        context = browser.new_context(**{"locale": "en-US", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append((url, request.url)))
        page.goto(url + "/")
        return page

    yield go
    for context in contexts:
        context.close()
    assert all(wanted.startswith(url) for url, wanted in asked), asked
    assert not [text for text in said if "Failed to load resource" not in text], said


def ask(page: Page, text: str) -> str:
    """Send a message, wait for the whole answer, return it."""
    page.fill("#ask", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#log article.assistant:last-child .tools")
    answer: str = page.locator("#log article.assistant").last.locator(".text").inner_text()
    return answer


def go_on(page: Page, tokens: int) -> None:
    """Have answers last so many tokens, whatever the model says."""

    def change(route: Any) -> None:
        body = route.request.post_data_json | {"ignore_eos": True, "max_tokens": tokens}
        route.continue_(post_data=json.dumps(body))

    page.route(CHAT, change)


def fulfil(page: Page, *texts: str, status: int = 200) -> list[Any]:
    """Answer in the server's place with these pieces; the bodies that the page sends."""
    bodies = []
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(status=status, body=body, content_type="text/event-stream")

    page.route(CHAT, answer)
    return bodies


def test_a_chat(visit: Callable[..., Page], server: Running) -> None:
    page = visit()
    page.wait_for_function("document.querySelector('#model').textContent === 'demo'")
    turn = {"role": "user", "content": "What is the capital of France?"}
    reply = server.json("/v1/chat/completions", {"messages": [turn], "temperature": 0})
    assert ask(page, turn["content"]) == reply["choices"][0]["message"]["content"].strip()
    note, usage = page.locator(".note").inner_text(), reply["usage"]
    assert f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens" in note
    assert re.search(r"[\d.]+ tokens/s · first after [\d.]+ s", note)
    assert page.locator("#chats .open").inner_text() == turn["content"] == page.title()


def test_the_answer_grows_and_can_be_stopped(visit: Callable[..., Page], server: Running) -> None:
    page = visit()
    go_on(page, 4000)
    for stop in (lambda: page.keyboard.press("Escape"), lambda: page.click("#stop")):
        page.fill("#ask", "Tell me a story")
        page.keyboard.press("Enter")
        text = page.locator("#log article.assistant").last.locator(".text")
        first = wait_for(text.text_content)
        wait_for(lambda text=text, first=first: len(text.text_content()) > len(first))
        stop()
        page.wait_for_selector("#log article.assistant:last-child .tools")
        assert "stopped" in page.locator(".note").last.inner_text() and text.text_content()
        wait_for(lambda: at_rest(server))
        assert page.is_visible("#send") and page.is_hidden("#stop")


def test_history_survives_a_reload(visit: Callable[..., Page]) -> None:
    page = visit()
    answer = ask(page, "What is the capital of France?")
    page.keyboard.press("Control+k")
    ask(page, "And of Italy?")
    page.reload()
    assert page.locator("#chats .open").all_inner_texts() == ["And of Italy?", "What is the capital of France?"]
    page.click("#chats .open >> text=France")
    assert page.locator("article.assistant .text").inner_text() == answer
    page.click("#chats li.current [aria-label=Rename]")
    page.keyboard.type("Capitals")
    page.keyboard.press("Enter")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#chats li:not(.current) [aria-label=Delete]")
    page.reload()
    assert page.locator("#chats .open").all_inner_texts() == ["Capitals"]


def test_what_came_before_a_reload_is_kept(visit: Callable[..., Page]) -> None:
    page = visit()
    go_on(page, 4000)
    page.fill("#ask", "Tell me a story")
    page.keyboard.press("Enter")
    text = page.locator("#log article.assistant .text")
    first = wait_for(text.text_content)
    page.reload()
    assert text.text_content().startswith(first) and "stopped" in page.locator(".note").inner_text()


def test_earlier_turns_and_settings_are_sent(visit: Callable[..., Page]) -> None:
    page = visit()
    bodies = fulfil(page, "Yes", "!")
    page.click("#settings")
    page.fill("[name=system]", "Be brief.")
    page.fill("[name=temperature]", "0.5")
    page.fill("[name=max_tokens]", "9")
    page.click("text=Done")
    page.reload()
    assert ask(page, "One?") == "Yes!"
    ask(page, "Two?")
    roles = [(message["role"], message["content"]) for message in bodies[1]["messages"]]
    assert roles == [("system", "Be brief."), ("user", "One?"), ("assistant", "Yes!"), ("user", "Two?")]
    assert bodies[1]["temperature"] == 0.5 and bodies[1]["max_tokens"] == 9 and "top_p" not in bodies[1]


def test_a_value_out_of_range_is_not_taken(visit: Callable[..., Page]) -> None:
    page = visit()
    page.click("#settings")
    page.fill("[name=top_p]", "1.5")
    page.click("text=Done")
    assert page.is_visible("#dialog") and page.locator("[name=top_p]:invalid").count() == 1


def test_no_text_becomes_html(visit: Callable[..., Page]) -> None:
    page = visit()
    fulfil(page, HOSTILE, "\n\n```html\n", HOSTILE, "\n```\nthen `<b>x</b>`")
    answer = ask(page, HOSTILE)
    assert answer.count(HOSTILE) == 2 and "<b>x</b>" in answer
    assert page.locator("#log .user .text").inner_text() == HOSTILE and page.title() == HOSTILE[:60]
    assert page.locator("#log pre code").inner_text() == HOSTILE and page.locator("#log p code").count() == 1
    assert page.locator("#log img, #log script, #log b").count() == 0 and page.evaluate("window.hit") is None


def test_the_keyboard(visit: Callable[..., Page]) -> None:
    page = visit()
    bodies = fulfil(page, "ok")
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.evaluate("""$('ask').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true}))""")
    assert not bodies and page.input_value("#ask") == "a\nb"
    page.keyboard.press("Enter")
    page.wait_for_selector(".tools")
    assert bodies[0]["messages"] == [{"role": "user", "content": "a\nb"}]
    page.keyboard.press("Control+k")
    assert page.locator("#log article").count() == 0 and page.evaluate("document.activeElement.id") == "ask"


def test_two_languages(visit: Callable[..., Page]) -> None:
    page = visit(locale="zh-CN")
    assert page.get_attribute("html", "lang") == "zh-CN" and page.get_attribute("#ask", "placeholder") == "输入消息"
    assert "个 token" in (ask(page, "你好") and page.locator(".note").inner_text())
    page.click("#language")
    page.reload()
    assert page.get_attribute("html", "lang") == "en" and "tokens" in page.locator(".note").inner_text()
    one, other = page.evaluate("[TEXTS.en, TEXTS.zh].map((texts) => Object.keys(texts).sort())")
    assert one == other


def test_light_and_dark(visit: Callable[..., Page]) -> None:
    page = visit(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    assert page.evaluate(colour) == "rgb(255, 255, 255)" != dark
    page.reload()
    assert page.evaluate(colour) == "rgb(255, 255, 255)"


def test_keys(visit: Callable[..., Page], closed: Running) -> None:
    page = visit(closed.url)
    go_on(page, 3)
    page.wait_for_selector("#notice >> text=needs an API key")
    page.fill("#ask", "Hello")
    page.keyboard.press("Enter")
    page.wait_for_selector(".problem >> text=needs an API key")
    wrong, right = ("wrong-key", "#notice >> text=The API key is wrong"), (closed.key, "#model >> text=org/closed")
    for key, shown in (wrong, right):
        page.click("text=Enter key")
        assert page.evaluate("document.activeElement.name") == "key"
        page.fill("[name=key]", "密钥")
        page.keyboard.press("Enter")
        assert page.locator("[name=key]:invalid").count() == 1, "it cannot be sent in a header"
        page.fill("[name=key]", key)
        page.keyboard.press("Enter")
        page.wait_for_selector(shown)
    assert page.is_hidden("#notice")
    page.click("[aria-label='Try again']")
    page.wait_for_selector(".note")
    assert closed.key not in page.evaluate("JSON.stringify(localStorage)")


def test_what_went_wrong_is_said(visit: Callable[..., Page]) -> None:
    page = visit()
    half = 'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    refusal = {"error": {"message": "the queue is full"}}
    cases: list[tuple[str, Callable[[Any], None]]] = [
        ("the queue is full", lambda route: route.fulfill(status=429, json=refusal)),
        (
            "too long for this",
            lambda route: route.fulfill(body=half + 'data: {"error": {"message": "too long for this"}}\n\n'),
        ),
        ("The connection broke", lambda route: route.fulfill(body=half)),
        ("cannot be reached", lambda route: route.abort()),
    ]
    for said, answer in cases:
        page.route(CHAT, answer)
        page.fill("#ask", "Hello")
        page.keyboard.press("Enter")
        page.wait_for_selector(f".problem >> text={said}")
        page.unroute(CHAT)
    bodies = fulfil(page, "Good")
    page.click("[aria-label='Try again']")
    page.wait_for_selector("article.assistant:last-child >> text=Good")
    assert page.locator("article.assistant").count() == len(cases)
    turns = [(message["role"], message["content"]) for message in bodies[0]["messages"]]
    assert turns == [*[("user", "Hello"), ("assistant", "half")] * 2, ("user", "Hello")], "the others had no answer"


def test_a_narrow_screen(visit: Callable[..., Page]) -> None:
    page = visit(viewport={"width": 360, "height": 640})
    ask(page, "x" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
    assert not page.is_visible("#new")
    page.click("#menu")
    page.click("#new")
    page.click("#settings")
    assert page.locator("#dialog").bounding_box()["width"] <= 360


def test_everything_has_a_name(visit: Callable[..., Page]) -> None:
    page = visit()
    ask(page, "Hello")
    page.click("#settings")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea")].filter((one) => !one.getAttribute("aria-label")
        && !one.textContent.trim() && !one.closest("label")?.textContent.trim()).map((one) => one.outerHTML)"""
    )
    assert not nameless
    assert page.get_attribute("#log", "role") == "log" and page.get_attribute("#said", "role") == "status"


def test_what_the_browser_may_do_with_it(server: Running) -> None:
    response, data = server.request("GET", "/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert b"http://www.w3.org" in data and len(re.findall(rb"https?://", data)) == 1, "the name of SVG, and no host"
    assert server.request("HEAD", "/")[0].status == 200
