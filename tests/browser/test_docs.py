"""The page of the API: every example can be sent, in MessagePack, and its answer is decoded."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from conftest import KEY
from watching import Traffic

Opening = Callable[..., tuple[Page, Traffic]]


def test_every_example_of_every_operation_works(url: str, open_page: Opening):
    page, _ = open_page(f"{url}/docs")
    expect(page.locator("section.operation")).to_have_count(10)
    sent = []
    for section in page.locator("section.operation").all():
        path = section.get_attribute("id")
        for index in range(max(1, section.locator("select option").count())):
            if section.locator("select").count():
                section.locator("select").select_option(index=index)
            with page.expect_response(f"**/{path}") as answer:
                section.locator("button").click()
            expect(section.locator("button")).to_be_enabled()
            assert section.locator(".status-line").text_content() == "200 OK", (path, index)
            assert answer.value.status == 200
            sent.append((path, answer.value.request.headers.get("content-type", "")))

    assert len({path for path, _ in sent}) == 10
    packed = {path for path, kind in sent if kind == "application/vnd.msgpack"}
    assert packed == {"quantize", "dequantize", "levels", "aggregate", "plan"}
    assert ("quantize", "application/json") in sent


def test_messages_are_packed_and_decoded(url: str, open_page: Opening):
    page, _ = open_page(f"{url}/docs")
    page.locator("#quantize textarea").fill(
        '{"vector": {"dtype": "float32", "shape": [2], "data": "AACAPwAAIMA="}, "bits": 1,'
        ' "seed": 18446744073709551615}'
    )
    with page.expect_request("**/quantize") as sent:
        page.click("#quantize button")
    expect(page.locator("#quantize .status-line")).to_have_text("200 OK")

    request = sent.value
    body = request.post_data_buffer or b""
    # docs/wire-format.md: the float32 vector (1.0, -2.5); the greatest seed.
    assert bytes.fromhex("a464617461c4080000803f000020c0") in body
    assert b"\xa4seed\xcf" + b"\xff" * 8 in body
    answer = page.locator("#quantize pre").first.text_content() or ""
    assert '"seed": 18446744073709551615' in answer
    assert '"data": bin(8) AAAgwAAAgD8=' in answer
    assert "x-request-id" in (page.locator("#quantize pre").nth(1).text_content() or "")


def test_problems_are_shown(url: str, open_page: Opening):
    page, _ = open_page(f"{url}/docs")
    page.locator("#quantize textarea").fill('{"vector": [1, 2], "bits": 9}')
    page.click("#quantize button")
    expect(page.locator("#quantize .status-line")).to_contain_text("422")
    expect(page.locator("#quantize pre").first).to_contain_text('"code": "invalid_option"')
    page.locator("#quantize textarea").fill('{"vector": ')
    page.click("#quantize button")
    expect(page.locator("#quantize .status-line")).to_contain_text("The body is no JSON")
    page.locator("#quantize textarea").fill('{"vector": "?"}')
    page.click("#quantize button")
    expect(page.locator("#quantize .status-line")).to_contain_text("bytes must be base64")


def test_a_key_can_be_typed(guarded_url: str, open_page: Opening):
    page, _ = open_page(f"{guarded_url}/docs")
    page.click("#quantize button")
    expect(page.locator("#quantize .status-line")).to_contain_text("401")
    page.fill("#key", KEY)
    page.click("#quantize button")
    expect(page.locator("#quantize .status-line")).to_have_text("200 OK")
