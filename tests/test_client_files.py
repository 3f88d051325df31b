"""The browser's files as they are served, what templates say of them, and snapshots."""

import gzip
import json
import re
from typing import Any

import pytest
from flask import Flask, jsonify, render_template_string

from hybrid import Hybrid, __version__
from hybrid.routes.client import STATIC

CLIENT = "/api/realtime/client"


def make_app(**settings: Any) -> tuple[Flask, Hybrid]:
    app = Flask(__name__)
    app.config.update({f"HYBRID_{name.upper()}": value for name, value in settings.items()})
    return app, Hybrid(app)


def rendered(app: Flask, template: str, **environ: Any) -> str:
    with app.test_request_context(**environ):
        return render_template_string(template)


@pytest.mark.parametrize(
    ("file", "type"),
    [
        ("hybrid.js", "text/javascript"),
        ("react.min.js", "text/javascript"),
        ("hybrid.global.js", "text/javascript"),
        ("dashboard.d.ts", "application/typescript"),
    ],
)
def test_every_file_has_its_type(file: str, type: str) -> None:
    """Browsers refuse a module of another type; what is no code is not served."""
    app, _ = make_app()
    answer = app.test_client().get(f"{CLIENT}/{file}")
    assert answer.content_type == f"{type}; charset=utf-8"
    assert answer.get_data() == (STATIC / file).read_bytes()
    for other in ("package.json", "README.md", "LICENSE"):
        assert app.test_client().get(f"{CLIENT}/{other}").status_code == 404


def test_a_file_comes_compressed_to_who_can_read_it() -> None:
    """So that it is as small on the wire as it is said to be, whatever is in front."""
    app, _ = make_app()
    browser = app.test_client()
    small = browser.get(f"{CLIENT}/hybrid.min.js", headers={"Accept-Encoding": "gzip, br"})
    assert small.headers["Content-Encoding"] == "gzip"
    assert small.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(small.get_data()) == (STATIC / "hybrid.min.js").read_bytes()
    plain = browser.get(f"{CLIENT}/hybrid.min.js", headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["ETag"] != small.headers["ETag"]


def test_a_version_in_the_path_is_for_ever_and_another_one_is_kept_by_nobody() -> None:
    """While servers are updated one by one, an old one may be asked for the new version."""
    app, _ = make_app()
    browser = app.test_client()
    ours = browser.get(f"{CLIENT}/{__version__}/react.js")
    assert ours.cache_control.immutable
    unsaid = browser.get(f"{CLIENT}/tabs.js")
    assert unsaid.cache_control.no_cache
    assert unsaid.cache_control.max_age is None
    known = {"If-None-Match": unsaid.headers["ETag"]}
    assert browser.get(f"{CLIENT}/tabs.js", headers=known).status_code == 304
    for address in (f"{CLIENT}/9.9.9/react.js", f"{CLIENT}/react.js?v=9.9.9"):
        other = browser.get(address)
        assert other.status_code == 200
        assert other.headers["Cache-Control"] == "no-store"


def test_the_script_tag() -> None:
    """The classic script, ready for the script after it; a module where one is named."""
    app, _ = make_app()
    src = f"{CLIENT}/{__version__}/hybrid.global.js"
    assert rendered(app, "{{ hybrid_client() }}") == f'<script src="{src}"></script>'
    assert rendered(app, "{{ hybrid_client(nonce='a\"b') }}") == (
        f'<script src="{src}" nonce="a&#34;b"></script>'
    )
    assert rendered(app, "{{ hybrid_client(defer=True) }}").endswith(" defer></script>")
    module = rendered(app, "{{ hybrid_client('hybrid.js') }}")
    assert module == f'<script src="{CLIENT}/{__version__}/hybrid.js" type="module"></script>'
    assert app.test_client().get(src).status_code == 200


def test_what_templates_say_holds_under_a_prefix_and_wherever_the_blueprint_is() -> None:
    """A proxy may mount the application below a path, an application the blueprint anywhere."""
    below = {"SCRIPT_NAME": "/shop"}
    template = "{{ hybrid_url() }} {{ hybrid_client_url('react.js') }}"
    configured, _ = make_app(url_prefix="/x")
    assert rendered(configured, template, environ_overrides=below) == (
        f"/shop/x /shop/x/client/{__version__}/react.js"
    )
    by_hand = Flask(__name__)
    realtime = Hybrid()
    by_hand.register_blueprint(realtime.blueprint, url_prefix="/live")
    realtime.init_app(by_hand)
    assert rendered(by_hand, template) == f"/live /live/client/{__version__}/react.js"


def test_the_import_map() -> None:
    """Small files, except while debugging; nothing in it can end the script."""
    app, _ = make_app()
    template = "{{ hybrid_importmap({'react': '/static/</script>.js'}, nonce='n') }}"
    said = rendered(app, template)
    found = re.fullmatch(r'<script type="importmap" nonce="n">(.*)</script>', said)
    assert found
    assert "<" not in found[1]
    imports = json.loads(found[1])["imports"]
    assert imports["react"] == "/static/</script>.js"
    assert imports["flask-hybrid/react"] == f"{CLIENT}/{__version__}/react.min.js"
    for address in (imports[name] for name in imports if name != "react"):
        assert app.test_client().get(address).status_code == 200
    app.debug = True
    assert "/hybrid.js" in rendered(app, template)


def test_a_snapshot_says_where_in_the_log_it_was_before_it_was_loaded() -> None:
    """What is emitted while it is loaded is replayed to who starts from its cursor."""
    app, realtime = make_app()

    @app.get("/reports")
    @realtime.snapshot
    def reports() -> Any:
        realtime.emit("meanwhile", {"n": 1})
        return jsonify([1])

    @app.get("/refused")
    @realtime.snapshot
    def refused() -> Any:
        return {"error": "not yours"}, 403

    with app.app_context():
        before = realtime.cursor()
    browser = app.test_client()
    answer = browser.get("/reports")
    assert answer.get_json() == [1]
    cursor = answer.headers["X-Realtime-Cursor"]
    assert cursor == before
    missed = browser.get("/api/realtime/polling", query_string={"since": cursor}).get_json()
    assert [event["type"] for event in missed["events"]] == ["meanwhile"]
    assert browser.get("/refused").status_code == 403
    assert reports.__name__ == "reports"
