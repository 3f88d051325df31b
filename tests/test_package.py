"""What is shipped: the wheel has everything, and the README's code works from it."""

import json
import re
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from hybrid import __version__
from servers import DEADLINE, PREFIX, ROOT, Server, free_port, gunicorn


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as it would be published."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    assert built.name == f"flask_hybrid-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(built)


def test_the_wheel_has_everything_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """What the blueprint serves and the types' marker are in it; the demo and tests are not."""
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    kept = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "hybrid").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == kept
    assert {"hybrid/static/hybrid.js", "hybrid/static/monitor.js", "hybrid/py.typed"} <= shipped


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    """Lower bounds only: an upper bound in a library is a conflict in an application."""
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = wheel.read(name).decode()
    needs = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert any(need.lower().startswith("flask") for need in needs)
    assert not [need for need in needs if re.search("<|==|~=", need.partition(";")[0])]
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: MIT" in metadata


def test_the_pages_install_what_there_is(wheel: zipfile.ZipFile) -> None:
    """The wheel's and the npm package's file, and the extras, by the names that are built; and no
    page takes them from a registry that does not have them."""
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    extras = set(re.findall("^Provides-Extra: (.+)$", wheel.read(name).decode(), re.MULTILINE))
    assert extras == {"jwt", "prometheus"}
    packed = json.loads((ROOT / "hybrid/static/package.json").read_text())
    tarball = f"{packed['name']}-{packed['version']}.tgz"
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "hybrid/static/README.md"]
    texts = {page.name: page.read_text() for page in pages}
    for page in ("README.md", "quickstart.md"):
        text = (ROOT / page if page == "README.md" else ROOT / "docs" / page).read_text()
        assert f"dist/{Path(str(wheel.filename)).name}" in text
        assert f"./{tarball}" in text
    for page, text in texts.items():
        assert not re.search(r"(pip|npm|yarn|pnpm) (install|add) '?flask-hybrid", text), page
        assert "pypi.org/project/flask-hybrid" not in text, page
        for named in re.findall(r"(?:clone|\.whl)\[([a-z,]+)\]", text):
            assert set(named.split(",")) <= extras, page


TEN_LINES = """
from flask import Flask
from hybrid import Hybrid, Identity

app = Flask(__name__)
realtime = Hybrid(app)
realtime.can_monitor(lambda identity: True)

@app.post("/orders/<int:number>/ship")
def ship(number: int) -> tuple[str, int]:
    realtime.emit("order.shipped", {"number": number})
    return "", 204
"""


@pytest.mark.server
def test_the_wheel_serves_an_application_elsewhere(tmp_path: Path, wheel: zipfile.ZipFile) -> None:
    """Installed in an environment of its own: stream, JavaScript, templates, commands, types."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "app.py").write_text(TEN_LINES)
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", f"{wheel.filename}[jwt]"], check=True)
    # What it needs comes from here: it is the wheel that is tested, and not the network.
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "needs.pth").write_text(sysconfig.get_path("purelib"))

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(python), "-P", *arguments], cwd=place, capture_output=True, text=True, check=False
        )

    found = run("-c", "import hybrid; print(hybrid.__file__)").stdout
    assert found.startswith(str(site)), found
    told = run("-m", "flask", "--app", "app.py", "hybrid", "--help").stdout
    assert "doctor" in told
    cache = ("--cache-dir", str(ROOT / ".mypy_cache"))  # of what the application imports
    types = [sys.executable, "-m", "mypy", "--strict", *cache, "--python-executable", str(python)]
    checked = subprocess.run(
        [*types, "app.py"], cwd=place, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    port = free_port()
    log = place / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(python), "-m", "gunicorn", "-k", "gevent", "-b", f"127.0.0.1:{port}", "app:app"],
            cwd=place,
            stdout=output,
            stderr=output,
            text=True,
        )
    server = Server(process, port, log)
    try:
        server.until_up()
        with server.stream() as stream:
            stream.hello()
            assert server.call("POST", "/orders/17/ship")[0] == 204
            (block,) = stream.take(1, "order.shipped")
            assert block.data == '{"number":17}'
            for file in ("hybrid.js", "hybrid.d.ts"):
                status, text = server.call("GET", f"{PREFIX}/client/{file}")
                assert (status, "connect" in text) == (200, True), file
            page = server.call("GET", f"{PREFIX}/monitor", headers={"Accept": "text/html"})
            assert (page[0], "<html" in page[1]) == (200, True)
            process.send_signal(signal.SIGTERM)
            stream.take(1, "hybrid.bye")
        assert process.wait(DEADLINE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(DEADLINE)


def readme_code(language: str) -> str:
    """The README's first block of code in a language."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def pasted(tmp_path: Path, wheel: zipfile.ZipFile) -> Path:
    """A folder with the README's code and the installed wheel."""
    wheel.extractall(tmp_path)
    (tmp_path / "templates").mkdir()
    (tmp_path / "app.py").write_text(readme_code("python"))
    (tmp_path / "templates/index.html").write_text(readme_code("html"))
    return tmp_path


@pytest.mark.server
@pytest.mark.browser
def test_the_readmes_code_works_when_pasted(pasted: Path, chromium: Browser) -> None:
    """Ten lines of server, four of client, one curl."""
    assert len(readme_code("python").strip().splitlines()) <= 14  # ten and the blank lines
    with gunicorn(pasted / "log", "--chdir", str(pasted), app="app:app") as server:
        page = chromium.new_page()
        with page.expect_response(lambda response: response.url.endswith("/sse?")):
            page.goto(f"http://127.0.0.1:{server.port}/")
        with server.stream() as stream:
            stream.hello()
            status, _ = server.call("POST", "/orders/17/ship")
            assert status == 204
            (block,) = stream.take(1, "order.shipped")
        assert block.data == '{"number":17}'
        expect(page.locator("body")).to_contain_text("order 17 is on its way")
        page.close()
