"""What is shipped: the wheel has everything, and the README's code works from it."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from hybrid import __version__
from servers import ROOT, gunicorn


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
    assert {"hybrid/static/hybrid.js", "hybrid/py.typed"} <= shipped


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    """Lower bounds only: an upper bound in a library is a conflict in an application."""
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = wheel.read(name).decode()
    needs = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert any(need.lower().startswith("flask") for need in needs)
    assert not [need for need in needs if re.search("<|==|~=", need)]
    assert "Requires-Python: >=3.11" in metadata
    assert "License-Expression: MIT" in metadata


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
