"""The pages as files: what is served how, and that nothing in them leads to another host."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest
from starlette.testclient import TestClient

from quiver_service.openapi import document
from quiver_service.playground import pages

ROOT = Path(__file__).parents[2]
STATIC = Path(str(resources.files("quiver_service.playground"))) / "static"
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
SERVED = sorted(pages.load(playground=True))
KEY = "k" * 40
# The name of SVG, which no browser asks for.
NAMES = {"http://www.w3.org/2000/svg"}
ADDRESS = re.compile(r"""(?:\b[a-z][a-z0-9+.-]*:)?//[^\s"'`<>)]+""")
COMMENT = re.compile(r"^\s*(//|\*|/\*).*$|\s//\s.*$", re.MULTILINE)
MARKUP = re.compile(
    r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function|"
    r"srcdoc|createContextualFragment|localStorage|sessionStorage|document\.cookie)\b"
)
INLINE = re.compile(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son[a-z]+=|javascript:")


def load_script() -> ModuleType:
    """scripts/playground.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("playground", ROOT / "scripts" / "playground.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COPYING = load_script()


def addresses(text: str) -> set[str]:
    """What looks like an address with a host."""
    return set(ADDRESS.findall(COMMENT.sub("", text))) - NAMES


def links(text: str) -> list[str]:
    """What a page or module loads, as it names it."""
    return re.findall(r'(?:src|href)="([^"#]+)"', text) + re.findall(r'from "([^"]+)"', text)


@pytest.mark.parametrize("path", SERVED)
def test_every_page_is_served_with_its_type_and_guards(client: TestClient, path: str):
    answer = client.get(path)

    assert answer.status_code == 200
    assert answer.content
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    end = path.rpartition(".")[2] if "." in path else "html"
    assert answer.headers["content-type"].startswith(kinds[end])
    policy = dict(
        rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'self'"
    assert policy.keys() == {
        *("default-src", "base-uri", "form-action", "frame-ancestors", "object-src"),
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/docs", "/ui/style.css"])
def test_who_has_a_page_is_not_sent_it_again(client: TestClient, path: str):
    first = client.get(path)
    etag = first.headers["etag"]

    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = client.get(path, headers={"if-none-match": value})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content
    assert first.headers["cache-control"] == "no-cache"


def test_etags_differ_where_files_do():
    found = pages.load(playground=True)

    assert len({page.etag for page in found.values()}) == len({p.body for p in found.values()})


def test_head_has_the_length_and_no_body(client: TestClient):
    answer = client.head("/")

    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(client.get("/").content)


@pytest.mark.parametrize("path", ["/", "/docs", "/ui/main.js"])
def test_other_methods_are_refused(client: TestClient, path: str):
    answer = client.post(path, content=b"x")

    assert answer.status_code == 405
    assert answer.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path",
    ["/ui", "/ui/", "/ui/nothing.js", "/ui/../pages.py", "/ui/%2e%2e/pages.py", "/ui/index.html"],
)
def test_nothing_else_of_the_package_is_served(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def test_the_playground_can_be_switched_off(make_client: Callable[..., TestClient]):
    client = make_client(playground=False)

    assert client.get("/").status_code == 404
    assert client.get("/docs").status_code == 200
    assert client.get("/ui/docs.js").status_code == 200


def test_keys_guard_the_pages_only_where_all_is_guarded(make_client: Callable[..., TestClient]):
    public = make_client(api_keys=KEY)
    guarded = make_client(api_keys=KEY, protect_all=True)

    for path in ("/", "/docs", "/ui/main.js"):
        assert public.get(path).status_code == 200
        assert guarded.get(path).status_code == 401
    # The pages know no key: what they send without one is refused.
    assert public.post("/quantize", json={"vector": [1.0]}).status_code == 401


def test_paths_have_few_labels():
    found = pages.labels(pages.load(playground=True))

    assert set(found.values()) == {"/", "/docs", "/ui"}
    assert set(found.values()) <= document.PATHS


def test_redoc_leads_to_the_page_of_the_api(client: TestClient):
    answer = client.get("/redoc", follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (308, "docs")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_names_another_host(file: Path):
    assert addresses(file.read_text()) == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_makes_markup_of_text_or_keeps_anything(file: Path):
    text = file.read_text()

    assert not MARKUP.findall(COMMENT.sub("", text))
    if file.suffix == ".html":
        assert not INLINE.findall(text)


@pytest.mark.parametrize(
    "planted",
    [
        'import x from "https://cdn.example/x.js";',
        '<script src="//cdn.example/x.js"></script>',
        "background: url(https://cdn.example/a.png)",
        'fetch(`http://${host}/x`) // "a comment"',
        'new WebSocket("wss://cdn.example")',
    ],
)
def test_the_search_for_hosts_finds_a_planted_one(planted: str):
    assert addresses(planted)


@pytest.mark.parametrize("planted", ["<script>go()</script>", '<p style="x">', "<b onclick='x'>"])
def test_the_search_for_inline_code_finds_a_planted_one(planted: str):
    assert INLINE.findall(planted)


@pytest.mark.parametrize("planted", ["box.innerHTML = text", "localStorage.key = 1", "eval(x)"])
def test_the_search_for_markup_finds_a_planted_one(planted: str):
    assert MARKUP.findall(planted)


def test_whatever_a_file_loads_is_served(client: TestClient):
    missing = []
    for path in SERVED:
        # Relative to the file, so that a proxy may put the service below a path of its own.
        for link in links(client.get(path).text):
            assert not link.startswith("/"), (path, link)
            folder = path.rpartition("/")[0]
            target = Path(f"{folder}/{link}").as_posix().replace("/./", "/")
            if client.get(target).status_code != 200:
                missing.append((path, link))

    assert missing == []


def test_all_together_are_small():
    sizes = {path: len(page.body) for path, page in pages.load(playground=True).items()}
    decoder = {path for path in sizes if path.startswith("/ui/quiver/")}

    assert sum(sizes[path] for path in sizes.keys() - decoder) < 90_000, sizes
    assert sum(sizes.values()) < 200_000, sizes


def test_the_decoder_is_the_clients():
    """Fails when `clients/js` changed and `python scripts/playground.py` did not follow."""
    assert COPYING.differences(ROOT / "clients" / "js" / "src", STATIC / "quiver") == []


@pytest.mark.parametrize("fault", ["changed", "missing", "extra"])
def test_a_decoder_of_another_version_is_noticed(tmp_path: Path, fault: str):
    copy = tmp_path / "quiver"
    shutil.copytree(STATIC / "quiver", copy)
    file = copy / ("extra.js" if fault == "extra" else "packing.js")
    if fault == "missing":
        file.unlink()
    else:
        file.write_text("// planted\n")

    assert COPYING.differences(ROOT / "clients" / "js" / "src", copy) == [file.name]
    assert "msgpack.js" in COPYING.wanted(ROOT / "clients" / "js" / "src")


def test_the_wheel_holds_the_pages(tmp_path: Path):
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", tmp_path, ROOT / "service"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())

    folder = STATIC.relative_to(STATIC.parents[2])
    assert {(folder / file.relative_to(STATIC)).as_posix() for file in FILES} <= names
