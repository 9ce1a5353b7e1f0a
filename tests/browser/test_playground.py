"""The playground: what people do there, and that it shows what the service says."""

from __future__ import annotations

import array
import base64
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import talking
from conftest import KEY
from watching import Traffic

Opening = Callable[..., tuple[Page, Traffic]]
NUMBERS = [0.1, 0.2, 0.25, 0.9, 1.7, 4.2, -3.0, 2.5]
BITS = range(1, 9)


def done(page: Page, text: str = "") -> None:
    """Wait until the answer to what is chosen is shown."""
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#status")).to_contain_text(re.compile(f"^Done: .*{re.escape(text)}"))


def give_numbers(page: Page, numbers: list[float]) -> None:
    page.locator("label:has(input[value=numbers])").click()
    page.fill("#numbers", ", ".join(map(str, numbers)))


def measured(values: list[float], back: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(values, back, strict=True)) / sum(x * x for x in values)


def cells(page: Page, table: str) -> list[list[str]]:
    # Closed details have no rendered text.
    rows = page.locator(f"{table} tr")
    return [row.locator("th, td").all_text_contents() for row in rows.all()]


def test_it_starts_with_a_result(url: str, open_page: Opening):
    page, traffic = open_page(url)

    done(page, "exact, 4 bits")
    assert page.locator("#histogram .level").count() == 16
    assert page.locator("#errors .curve").count() == 5
    expect(page.locator("#state")).to_contain_text("Ready")
    # One request for the vector, one for all curves.
    assert (traffic.count("/quantize"), traffic.count("/plan")) == (1, 1)


def test_it_shows_what_the_service_says(url: str, open_page: Opening):
    page, _ = open_page(url)
    give_numbers(page, NUMBERS)
    page.fill("#seed", "18446744073709551615")
    page.locator("#bits").fill("2")
    done(page, "exact, 2 bits")

    request = {"vector": NUMBERS, "bits": 2, "seed": 2**64 - 1}
    answer = talking.ask(url, "/quantize", request)
    levels = array.array("f", base64.b64decode(answer["levels"]["data"]))
    expect(page.locator("#tile-expected")).to_have_text(talking.text_of(answer["vnmse"]))
    assert [float(row[1]) for row in cells(page, "#levels-table")[1:]] == list(levels)
    expect(page.locator("#tile-measured-note")).to_have_text("decoded in this page")


def test_the_saved_message_decodes_to_what_was_measured(
    url: str, open_page: Opening, tmp_path: Path
):
    page, _ = open_page(url)
    give_numbers(page, NUMBERS)
    page.locator("#bits").fill("2")
    done(page, "exact, 2 bits")
    with page.expect_download() as download:
        page.click("#save")
    file = tmp_path / "message"
    download.value.save_as(file)

    back = talking.decoded(url, file.read_bytes())
    shown = page.locator("#tile-measured").text_content()
    assert shown == talking.text_of(measured(list(array.array("f", NUMBERS)), back))
    assert download.value.suggested_filename == "exact-2.quiver"


def test_curves_are_those_of_the_service(url: str, open_page: Opening):
    page, _ = open_page(url)
    give_numbers(page, NUMBERS)
    done(page)
    heads, *rows = cells(page, "#errors-table")

    assert heads == ["bits", "exact", "approx", "uniform", "simba", "eden"]
    assert [row[0] for row in rows] == [str(bits) for bits in BITS]
    for bits, row in zip(BITS, rows, strict=True):
        for method, text in list(zip(heads, row, strict=True))[1:4]:
            request = {"vector": NUMBERS, "bits": bits, "method": method}
            expected = talking.ask(url, "/quantize", request)["vnmse"]
            assert float(text) == pytest.approx(expected, rel=6e-3, abs=1e-12), (method, bits)


def test_every_method_gives_a_result(url: str, open_page: Opening):
    page, _ = open_page(url)
    page.select_option("#size", "1024")
    done(page)
    methods = page.locator("#method option").all_text_contents()

    assert len(methods) >= 20
    for method in methods:
        page.select_option("#method", method)
        done(page, f"{method},")
        assert page.locator("#problem").is_hidden()
        assert float(page.locator("#tile-measured").text_content() or "") > 0, method


def test_bits_that_a_method_lacks_become_the_nearest(url: str, open_page: Opening):
    page, _ = open_page(url)
    page.select_option("#method", "lsq")
    page.locator("#bits").fill("8")

    done(page, "lsq, 4 bits")
    expect(page.locator("#bits-help")).to_have_text("lsq has 3, 4: 4 is taken.")


def test_another_curve_is_asked_for_alone_and_once(url: str, open_page: Opening):
    page, traffic = open_page(url)
    done(page)
    before = traffic.count("/plan")
    page.locator("#legend label", has_text="tcq").first.click()
    expect(page.locator("#errors .curve")).to_have_count(6)
    page.locator("#legend label", has_text="tcq").first.click()
    expect(page.locator("#errors .curve")).to_have_count(5)
    page.locator("#legend label", has_text="tcq").first.click()
    expect(page.locator("#errors .curve")).to_have_count(6)

    assert traffic.count("/plan") == before + 1


def test_outdated_requests_are_not_sent_or_cancelled(url: str, open_page: Opening):
    page, traffic = open_page(url)
    done(page)
    before = traffic.count("/quantize")
    page.focus("#bits")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    done(page, "exact, 8 bits")
    assert traffic.count("/quantize") == before + 1

    # One that is on its way when the next comes.
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.route("**/quantize", lambda route: None, times=1)
    with page.expect_request("**/quantize"):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    done(page, "exact, 6 bits")
    assert failed == [f"{url}/quantize"]


@pytest.mark.parametrize("descr", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_files(url: str, open_page: Opening, tmp_path: Path, descr: str, fortran: bool):
    page, _ = open_page(url)
    values = [0.5, -1.25, 3.0, 2.0, 0.125, -2.5, 1.0, 0.25]
    file = talking.npy(tmp_path / "x.npy", descr, values, fortran=fortran)
    page.locator("label:has(input[value=file])").click()
    page.set_input_files("#file", file)

    done(page)
    expect(page.locator("#histogram-note")).to_contain_text("x.npy: the lines are the 8 levels")
    assert [float(row[1]) for row in cells(page, "#levels-table")[1:9]] == sorted(values)
    expect(page.locator("#tile-measured")).to_have_text("0")


def test_a_file_dropped_anywhere_is_taken(url: str, open_page: Opening):
    page, _ = open_page(url)
    done(page)
    transfer = page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            const values = new Float32Array([1, 2, 3, 4]);
            transfer.items.add(new File([values], "dropped.f32"));
            return transfer;
        }"""
    )
    page.dispatch_event("#errors", "drop", {"dataTransfer": transfer})

    done(page, "16 bytes became")
    expect(page.locator("#file-name")).to_have_text("dropped.f32, 16 bytes")
    assert page.locator("input[value=file]").is_checked()


def test_large_files_wait_for_the_button_and_are_sampled(
    url: str, open_page: Opening, tmp_path: Path
):
    page, traffic = open_page(url)
    done(page)
    block = [random.Random(1).gauss(0, 1) for _ in range(1 << 12)]
    file = talking.npy(tmp_path / "large.npy", "<f4", block * 600)
    before = traffic.count("/quantize")
    page.set_input_files("#file", file)

    expect(page.locator("#status")).to_contain_text("large.npy: 2,457,600 values")
    assert traffic.count("/quantize") == before
    expect(page.locator("#histogram-note")).to_contain_text("of its 2,457,600 values")
    page.click("#go")
    done(page, "9.38 MiB became")
    expect(page.locator("#tile-measured-note")).to_have_text("too many values to decode here")
    expect(page.locator("#errors-note")).to_contain_text("Computed from 65,536 of its values.")


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("x.npy", b"no array", "x.npy does not begin as an .npy file does."),
        ("x.f32", b"12345", "Raw float32 must have 4 bytes per value; x.f32 has 5 bytes."),
        ("x.txt", b"1 2 three", 'Value 3 must be a finite number of float32; got "three".'),
        ("x.csv", b"1,1e39", 'Value 2 must be a finite number of float32; got "1e39".'),
        ("x.txt", b" \n", "There are no numbers yet."),
        ("x.png", b"x", "x.png: the name must end in .npy, .f32, .txt, .csv or .json."),
    ],
)
def test_files_that_cannot_be_read(url: str, open_page: Opening, name: str, body: bytes, told: str):
    page, traffic = open_page(url)
    done(page)
    before = traffic.count("/quantize")
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": body})

    expect(page.locator("#problem")).to_contain_text(told)
    assert traffic.count("/quantize") == before
    # And the next that can be read takes the complaint away.
    page.locator("label:has(input[value=distribution])").click()
    done(page)
    expect(page.locator("#problem")).to_be_hidden()


def test_npy_files_of_other_types_and_sizes(url: str, open_page: Opening, tmp_path: Path):
    page, _ = open_page(url)
    page.set_input_files("#file", talking.npy(tmp_path / "whole.npy", "<i4", [1, 2]))
    expect(page.locator("#problem")).to_contain_text(
        "whole.npy must hold little-endian float16, float32 or float64; got <i4."
    )
    short = talking.npy(tmp_path / "short.npy", "<f4", [1.0, 2.0])
    short.write_bytes(short.read_bytes()[:-1])
    page.set_input_files("#file", short)
    expect(page.locator("#problem")).to_contain_text(
        "short.npy must have 8 bytes of values; it has 7."
    )


def test_refusals_of_the_service_are_told(url: str, open_page: Opening, tmp_path: Path):
    page, _ = open_page(url)
    file = talking.npy(tmp_path / "x.npy", "<f4", [1.0, float("nan"), 2.0])
    page.set_input_files("#file", file)

    problem = page.locator("#problem")
    expect(problem).to_contain_text("Invalid input.")
    expect(problem).to_contain_text("vector")
    expect(problem).to_contain_text("code non_finite, request ")
    assert problem.get_attribute("role") == "alert"


def test_a_seed_that_is_none_is_told(url: str, open_page: Opening):
    page, _ = open_page(url)
    done(page)
    page.fill("#seed", "18446744073709551616")

    expect(page.locator("#problem")).to_contain_text("The seed must be a whole number from 0 to")


def test_a_key_can_be_typed(guarded_url: str, open_page: Opening):
    page, traffic = open_page(guarded_url)

    expect(page.locator("#problem")).to_contain_text("API key required.")
    expect(page.locator("#key")).to_be_visible()
    page.fill("#key", "not-the-key")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("code unauthorized")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    done(page)
    expect(page.locator("#problem")).to_be_hidden()
    assert all(KEY not in request.url for request in traffic.requests)
    # Nothing of it is kept.
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        *(0, 0, ""),
    ]
    page.reload()
    expect(page.locator("#problem")).to_contain_text("API key required.")


def test_what_the_service_would_refuse_for_its_size_is_not_sent(
    guarded_url: str, open_page: Opening
):
    page, traffic = open_page(guarded_url)
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    done(page)
    before = traffic.count("/quantize")
    page.select_option("#size", "262144")

    expect(page.locator("#problem")).to_contain_text(
        "This service takes at most 293 KiB in a request"
    )
    assert traffic.count("/quantize") == before


def test_a_service_that_went_away_is_told(url: str, open_page: Opening):
    page, traffic = open_page(url)
    done(page)
    page.route("**/*", lambda route: route.abort("connectionrefused"))
    page.click("#draw")

    expect(page.locator("#problem")).to_contain_text("The service cannot be reached.")
    expect(page.locator("#state")).to_contain_text("Not reachable")
    page.unroute("**/*")
    page.click("#go")
    done(page)
    expect(page.locator("#state")).to_contain_text("Ready")
    lost = [line for line in traffic.complaints if "ERR_CONNECTION_REFUSED" in line]
    assert lost
    traffic.complaints[:] = [line for line in traffic.complaints if line not in lost]


def test_figures_are_polled_only_while_the_page_is_seen(url: str, open_page: Opening):
    page, traffic = open_page(url)
    expect(page.locator("#live-values")).not_to_have_text("–")
    expect(page.locator("#live-running")).to_contain_text("threads")
    seen = "Object.defineProperty(document, 'visibilityState', {configurable: true, get: () => %r})"
    page.evaluate(seen % "hidden")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)
    before = traffic.count("/metrics")
    page.wait_for_timeout(4500)
    assert traffic.count("/metrics") == before

    page.evaluate(seen % "visible")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(4500)
    assert before + 2 <= traffic.count("/metrics") <= before + 4


def test_everything_can_be_done_with_the_keyboard(url: str, open_page: Opening):
    page, _ = open_page(url)
    done(page)

    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || `=${document.activeElement.value}`"))

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if focused() == name:
                return
        pytest.fail(f"{name} cannot be reached; the focus is at {focused()}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to("distribution")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    assert focused() == "=numbers"
    tab_to("numbers")
    page.keyboard.type("1 2 3 5 8 13")
    done(page, "24 bytes became")
    tab_to("method")
    page.keyboard.type("uniform")
    done(page, "uniform, 4 bits")
    tab_to("bits")
    page.keyboard.press("ArrowLeft")
    done(page, "uniform, 3 bits")
    tab_to("log-counts")
    page.keyboard.press("Space")
    assert page.locator("#log-counts").is_checked()
    tab_to("=exact")
    page.keyboard.press("Space")
    expect(page.locator("#errors .curve")).to_have_count(4)
    tab_to("save")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_what_is_focused_can_be_seen(url: str, open_page: Opening):
    page, _ = open_page(url)
    done(page)
    unseen, count = [], 0
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement !== document.body"):
        count += 1
        seen = page.evaluate(
            """() => {
                const lined = (node) => node && getComputedStyle(node).outlineStyle !== "none";
                const focused = document.activeElement;
                // What is drawn in place of an invisible input, or around it.
                return lined(focused) || lined(focused.nextElementSibling)
                    || lined(focused.closest("label"));
            }"""
        )
        if not seen:
            unseen.append(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
        page.keyboard.press("Tab")

    assert unseen == []
    assert count > 30
