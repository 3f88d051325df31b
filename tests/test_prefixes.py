"""Where the blueprint may be mounted: below a prefix with variables, and not where hosts match."""

from typing import Any

import pytest
from flask import Flask, g
from werkzeug.routing import BaseConverter

from hybrid import ConfigError, Hybrid, Identity
from sites import Reading, as_problem, types


class Language(BaseConverter):
    regex = "de|en"


def make(prefix: str, *, by: str = "setting") -> tuple[Flask, Hybrid]:
    app = Flask(__name__)
    app.testing = True
    app.secret_key = "for tests"
    app.url_map.converters["language"] = Language
    realtime = Hybrid()
    if by == "hand":
        app.register_blueprint(realtime.blueprint, url_prefix=prefix)
    else:
        app.config["HYBRID_URL_PREFIX"] = prefix
    realtime.init_app(app)
    return app, realtime


@pytest.mark.parametrize("by", ["setting", "hand"])
@pytest.mark.parametrize(
    ("prefix", "path", "others"),
    [
        ("/<lang>/live", "/de/live", ["/live/nothing", "/a/b/live/nothing", "/de/life/nothing"]),
        ("/<language:lang>/live", "/de/live", ["/fr/live/nothing", "/de/lives/nothing"]),
        ("/x/<int:shop>/<lang>", "/x/17/de", ["/x/y/de/nothing", "/x/17/nothing"]),
        ("/api/realtime", "/api/realtime", ["/api/realtimes/nothing", "/api/nothing"]),
    ],
)
def test_below_a_prefix_with_variables_all_is_as_elsewhere(
    prefix: str, path: str, others: list[str], by: str
) -> None:
    """404 and 405 are problem details there and nowhere else; endpoints answer."""
    app, realtime = make(prefix, by=by)
    client = app.test_client()
    as_problem(client.get(f"{path}/nothing"), 404)
    as_problem(client.get(f"{path}/nothing/at/all"), 404)
    as_problem(client.get(f"{path}//nothing"), 404)
    wrong = client.get(f"{path}/test")
    as_problem(wrong, 405)
    assert set(wrong.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    for other in others:
        assert client.get(other).content_type == "text/html; charset=utf-8"
    assert client.get(f"{path}/polling").status_code == 200
    assert client.get(f"{path}/health/ready").status_code == 200
    with client.get(f"{path}/client/hybrid.js") as file:
        assert file.status_code == 200
    with Reading(client.get(f"{path}/sse")) as stream:
        stream.hello()
        realtime.emit("tick")
        assert types(stream.upto("tick")) == ["tick"]
    app.extensions["hybrid"].forget()


def test_the_application_may_take_the_variables_of_the_prefix() -> None:
    """As Flask's documentation has it; also when who is connected is looked at again."""
    app, realtime = make("/<lang>/live")

    @app.url_value_preprocessor
    def take(_endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.lang = (values or {}).pop("lang")

    realtime.identify(lambda: Identity(g.lang))
    client = app.test_client()
    with Reading(client.get("/de/live/sse")) as stream:
        stream.hello()
        instance = app.extensions["hybrid"].instance()
        (connection,) = instance.hub.connections.values()
        assert connection.identity == Identity("de")
        instance.recheck.step()
        assert (instance.recheck.revoked, instance.recheck.failures) == (0, 0)
    app.extensions["hybrid"].forget()


def test_an_app_that_matches_hosts_is_refused_with_the_reason() -> None:
    """Its routes would be reached by nobody, and its links would be `http:///…`."""
    with pytest.raises(ConfigError, match=r"host_matching=True.*Fix"):
        Hybrid(Flask(__name__, host_matching=True, static_host="static.example"))
    app = Flask(__name__, host_matching=True, static_host="static.example")
    with pytest.raises(ConfigError, match="host_matching"):
        app.register_blueprint(Hybrid().blueprint, url_prefix="/live")


def test_the_monitors_page_names_its_files_below_the_prefix() -> None:
    app, realtime = make("/<language:lang>/live")
    realtime.can_monitor(lambda _: True)
    page = app.test_client().get("/de/live/monitor", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "/de/live/client/" in page.get_data(as_text=True)
    realtime.can_monitor(lambda _: False)
    page = app.test_client().get("/de/live/monitor", headers={"Accept": "text/html"})
    assert page.status_code == 403


def test_a_subdomain_may_have_variables_too() -> None:
    app = Flask(__name__, subdomain_matching=True)
    app.testing = True
    app.config["SERVER_NAME"] = "example.test"
    realtime = Hybrid()
    app.register_blueprint(realtime.blueprint, subdomain="<tenant>", url_prefix="/live")
    realtime.init_app(app)
    answer = app.test_client().get("/live/polling", base_url="http://acme.example.test")
    assert answer.status_code == 200
