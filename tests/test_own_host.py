"""What debug mode opens, it opens for this machine's names: a browser can be led here by others."""

import json
from pathlib import Path
from typing import Any

import pytest

from servers import PREFIX
from sites import MakeSite, Site, as_problem

OPENED = [
    ("GET", "/monitor"),
    ("GET", "/monitor/history"),
    ("GET", "/monitor/connections"),
    ("GET", "/monitor/sse"),
    ("GET", "/monitor/polling"),
    ("GET", "/metrics"),
    ("POST", "/monitor/disconnect"),
    ("POST", "/test"),
]
"""What is open in debug mode without a hook."""


def ask(site: Site, method: str, path: str, host: str) -> Any:
    body = {"user": "bob"} if path == "/monitor/disconnect" else {}
    options: dict[str, Any] = {"json": body} if method == "POST" else {}
    return site.client.open(PREFIX + path, method=method, headers={"Host": host}, **options)


@pytest.mark.parametrize(("method", "path"), OPENED)
@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("LOCALHOST:8000", True),
        ("app.localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("192.168.1.7", True),
        ("[::1]:5000", True),
        ("web:8000", True),
        ("my_app:8000", True),
        ("a_b.evil.example", False),
        ("evil.example_", False),
        ("[::zz]", False),
        ("evil.example:80:80", False),
        ("evil.example", False),
        ("evil.example:5000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evillocalhost.example", False),
    ],
)
def test_debug_mode_is_for_the_names_of_this_machine(
    site: Site, method: str, path: str, host: str, own: bool
) -> None:
    """A public name that leads here (DNS rebinding) gets nothing; it is told what to set."""
    site.app.debug = True
    with ask(site, method, path, host) as answer:
        if own:
            assert answer.status_code in (200, 201)
        else:
            detail = as_problem(answer, 403)["detail"]
            assert "TRUSTED_HOSTS" in detail
            assert host in detail
    assert site.hub.log.last == (1 if own and path in ("/test", "/monitor/disconnect") else 0)


@pytest.mark.parametrize(
    "config", [{"TRUSTED_HOSTS": [".shop.example"]}, {"SERVER_NAME": "shop.example"}]
)
def test_a_name_that_the_application_has_set_is_its_own(
    make_site: MakeSite, config: dict[str, Any]
) -> None:
    """And others are none: with TRUSTED_HOSTS Flask itself answers 400."""
    site = make_site()
    site.app.debug = True
    site.app.config.update(config)
    for host in ("shop.example", "dev.shop.example"):
        with ask(site, "GET", "/monitor", host) as answer:
            assert answer.status_code in (200, 404)  # by SERVER_NAME a subdomain is another site
            assert host != "shop.example" or answer.status_code == 200
    with ask(site, "GET", "/monitor", "evil.example") as answer:
        assert answer.status_code in (400, 403)


def test_a_hook_decides_by_itself(site: Site) -> None:
    """What debug mode opens is nothing to it; who asks by a foreign name brings no cookies."""
    site.app.debug = True
    site.realtime.can_monitor(lambda identity: identity.user == "admin")
    headers = {"Host": "shop.example", "X-User": "admin"}
    assert site.get("/monitor", headers=headers).status_code == 200
    as_problem(site.get("/monitor", headers={"Host": "localhost"}), 403)


def test_what_is_installed_has_no_known_hole() -> None:
    """The lower bounds are those of the advisories, wherever they are written."""
    root = Path(__file__).parent.parent
    project = (root / "pyproject.toml").read_text()
    assert json.dumps("flask>=3.1.1") in project
    assert project.count(json.dumps("pyjwt>=2.10.1")) == 2
    assert "flask>=3.1.1\n" in (root / "requirements.txt").read_text()
