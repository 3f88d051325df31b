"""Names of people in every template of the demo and of the documentation's pages.

Whatever somebody is called: a page has the same elements and scripts as with a harmless name, and
wherever the name stands it is that name.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask, render_template, render_template_string

from conftest import required
from hybrid import Hybrid
from servers import ROOT
from transcript import blocks

HARMLESS = "zz-name-zz"
HOSTILE = [  # all begin alike, as their initials do
    'zAnn "the" \\ Boss',
    "zO'Neil \\",
    "z</script><script>alert(1)</script>",
    "z<!--<script>",
    "za&b=c#d?e%2f+g&amp;quot;",
    "z{{ 7 * 7 }}${alert(1)}`",
    "z\u2028\u2029 zo\xeb \U0001f514",
    'z" onload="alert(1)',
]
DEMO = sorted((ROOT / "templates").glob("*.html"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
OF_DOCS = {
    f"{page.relative_to(ROOT)}:{block.line}": block.text
    for page in PAGES
    for block in blocks(page)
    if block.language == "html" and "<script" in block.text
}


class Page(HTMLParser):
    """The elements of a page with their attributes, its scripts and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[str]]] = []
        self.values: list[str] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, [name for name, _ in attrs]))
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        of_script = self.elements and self.cdata_elem == "script"
        (self.scripts if of_script else self.text).append(data)


def literals(text: str) -> list[str]:
    """The strings that a script's template has written as JSON."""
    return [json.loads(found) for found in re.findall(r'"(?:[^"\\\n]|\\.)*"', text)]


def check(harmless: str, hostile: str, name: str) -> None:
    """Both are the same page but for the name."""
    one, other = Page(harmless), Page(hostile)
    assert one.elements == other.elements

    def swapped(value: str) -> str:
        return value.replace(HARMLESS, name)

    for mine, theirs in zip(one.values, other.values, strict=True):
        if HARMLESS in mine and mine.startswith("{"):
            assert json.loads(theirs) == json.loads(mine.replace(HARMLESS, json.dumps(name)[1:-1]))
        elif HARMLESS in mine and "?" in mine:
            wanted = {key: list(map(swapped, of)) for key, of in parse_qs(query(mine)).items()}
            assert parse_qs(query(theirs)) == wanted
        elif HARMLESS in mine:
            assert theirs == swapped(mine)
    assert "".join(other.text).split() == swapped("".join(one.text)).split()
    for mine, theirs in zip(one.scripts, other.scripts, strict=True):
        assert Counter(literals(theirs)) == Counter(map(swapped, literals(mine)))
        shape = [re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', script) for script in (mine, theirs)]
        assert shape[0] == shape[1]


def query(address: str) -> str:
    return urlsplit(address).query


def of_demo(name: str) -> dict[str, Any]:
    """What the demo's templates are given, where everybody and everything has one name."""
    user = SimpleNamespace(id=name, name=name, role=name, does=name, decides=True)
    report = {"id": 1, "author": name, "title": name, "cents": 1, "note": name, "comment": name}
    report |= {"status": "waiting", "decided_by": name, "submitted_at": 0}
    return {
        **{"user": user, "users": [user], "names": {name: name}, "reports": [report]},
        **{"topic": f"html:{name}", "cursor": name, "what": "approved", "by": name, "title": name},
        **{"at": 0, "error": SimpleNamespace(name=name, description=name)},
        "csp_nonce": lambda: "nonce",
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.delitem(sys.modules, "app", raising=False)
        from app import create_app

        patch.delitem(sys.modules, "app")
    database = str(tmp_path_factory.mktemp("demo") / "reports.sqlite3")
    app: Flask = create_app({"DATABASE": database, "SECRET_KEY": "for tests", "TESTING": True})
    return app


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("template", DEMO, ids=lambda path: path.name)
def test_a_name_stays_a_name_in_the_demo(demo: Flask, template: Path, name: str) -> None:
    """In attributes, in addresses, in the JSON that scripts read, and as text."""
    with demo.test_request_context("/"):
        harmless, hostile = (
            render_template(template.name, **of_demo(each)) for each in (HARMLESS, name)
        )
    check(harmless, hostile, name)


@pytest.fixture(scope="module")
def documented() -> Flask:
    app = Flask(__name__, static_folder="static")
    app.secret_key = "for tests"
    Hybrid(app)
    return app


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("block", OF_DOCS)
def test_a_name_stays_a_name_in_the_documentations_pages(
    documented: Flask, block: str, name: str
) -> None:
    """And so does a path below which the application is mounted, as a proxy may say it."""
    path = "/" + name.strip()
    harmless, hostile = (
        rendered(documented, OF_DOCS[block], each, below)
        for each, below in ((HARMLESS, "/shop"), (name, "/shop"))
    )
    check(harmless, hostile, name)
    mounted = Page(rendered(documented, OF_DOCS[block], HARMLESS, path))
    assert mounted.elements == Page(harmless).elements
    for script in mounted.scripts:
        literals(script)


def rendered(app: Flask, source: str, name: str, below: str) -> str:
    wsgi = below.encode().decode("latin-1")
    with app.test_request_context("/", environ_overrides={"SCRIPT_NAME": wsgi}):
        return render_template_string(source, user=name, csp_nonce=lambda: "nonce")


@pytest.mark.parametrize("block", OF_DOCS)
def test_what_a_page_writes_into_a_script_is_json(block: str) -> None:
    """Quotes around a `{{ … }}` are not enough: a backslash or a quote in it breaks the script."""
    for script in re.findall(r"<script[^>]*>(.*?)</script>", OF_DOCS[block], re.DOTALL):
        for written in re.findall(r"{{(.*?)}}", script):
            assert written.strip().endswith("|tojson"), written


def test_the_scripts_that_are_looked_at_are_found() -> None:
    """And one that is written with quotes is refused, else the tests above would pass on it."""
    assert len(OF_DOCS) >= 9
    assert any("user|tojson" in text for text in OF_DOCS.values())
    app = Flask(__name__)
    source = '<script>f({ name: "{{ user }}" })</script>'
    with app.app_context():
        one, other = (render_template_string(source, user=each) for each in (HARMLESS, HOSTILE[1]))
    with pytest.raises(AssertionError):
        check(one, other, HOSTILE[1])


def test_a_hostile_name_is_itself_in_javascript(documented: Flask) -> None:
    """JSON is JavaScript: Node takes each name for what it is."""
    source = "console.log(JSON.stringify([{% for each in user %}{{ each|tojson }},{% endfor %}]))"
    with documented.app_context():
        script = render_template_string(source, user=HOSTILE)
    told = subprocess.run(
        [required("node", "nodejs"), "-e", script], capture_output=True, text=True, check=True
    )
    assert json.loads(told.stdout) == HOSTILE
