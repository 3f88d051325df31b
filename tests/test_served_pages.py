"""Honest use within the default limits: what has a page, or works on one, is not held to five."""

from typing import Any

import pytest

from hybrid import Identity
from hybrid.auth import Tickets
from hybrid.config import Settings
from sites import MakeSite, Site

DEFAULTS = {
    name.upper(): getattr(Settings(), name)
    for name in Settings.__slots__
    if name.startswith("limit_")
}


def at(address: str, **headers: str) -> dict[str, Any]:
    return {"environ_overrides": {"REMOTE_ADDR": address}, "headers": headers}


def connects(site: Site, times: int, query: str = "", **options: Any) -> list[int]:
    answers = []
    for _ in range(times):
        with site.get(f"/sse{query}", **options) as response:
            answers.append(response.status_code)
    return answers


def test_a_page_that_carries_its_cursor_connects_as_often_as_it_is_loaded(
    make_site: MakeSite,
) -> None:
    """From a template or from a snapshot; sixty times a minute for one user."""
    site = make_site(**DEFAULTS)

    @site.app.get("/page")
    def page() -> str:
        from flask import render_template_string

        return render_template_string("{{ hybrid_cursor() }}")

    @site.app.get("/data")
    @site.realtime.snapshot
    def data() -> dict[str, int]:
        return {"orders": 17}

    alice = {"headers": {"X-User": "alice"}}
    rendered = site.client.get("/page").get_data(as_text=True)
    loaded = site.client.get("/data").headers["X-Realtime-Cursor"]
    assert connects(site, 30, f"?since={rendered}", **alice) == [200] * 30
    assert connects(site, 31, f"?since={loaded}", **alice) == [200] * 30 + [429]
    # and who has no page is held to the contract's five
    assert connects(site, 6, headers={"X-User": "bob"}) == [200] * 5 + [429]


def test_an_office_behind_one_address_opens_its_pages(make_site: MakeSite) -> None:
    """A hundred private windows in a minute, each with the cursor of its page."""
    site = make_site(**DEFAULTS, MAX_CONNECTIONS_PER_IP=None)
    cursor = site.realtime.cursor()
    for number in range(100):
        headers = {"X-User": f"u{number}"}
        assert connects(site, 1, f"?since={cursor}", **at("9.9.9.9", **headers)) == [200]


def test_a_ticket_is_proof_of_a_page(make_site: MakeSite) -> None:
    """If it is signed here and its time is now; a made-up or old one is none."""
    site = make_site(**DEFAULTS)
    for _ in range(20):
        ticket = site.realtime.ticket(Identity("alice"))
        assert connects(site, 1, f"?ticket={ticket}") == [200]
    forged = Tickets("another secret").issue(Identity("alice"), [])
    assert connects(site, 11, f"?ticket={forged}") == [401] * 10 + [429]


@pytest.mark.parametrize(
    ("debug", "address", "free"),
    [
        (True, "127.0.0.1", True),
        (True, "127.8.9.1", True),
        (True, "::1", True),
        (True, "::ffff:127.0.0.1", True),
        (True, "192.168.1.7", False),
        (True, "", False),
        (False, "127.0.0.1", False),
    ],
)
def test_who_works_on_a_page_reloads_it_often(
    make_site: MakeSite, debug: bool, address: str, free: bool
) -> None:
    """From this machine and in debug mode only; sixty a minute are still a bound."""
    site = make_site(**DEFAULTS)
    site.app.debug = debug
    answers = connects(site, 61, **at(address, **{"X-User": "alice"}))
    assert answers == ([200] * 60 + [429] if free else [200] * 5 + [429] * 56)
