"""HTTP in, HTTP out: parse, ask, answer. The contract is docs/protocol.md.

Errors are problem details (RFC 9457). Nothing a client sends may end in a 500.
"""

from collections.abc import Collection
from functools import wraps
from typing import Any

from flask import Blueprint
from flask.sansio.blueprints import BlueprintSetupState
from flask.typing import RouteCallable
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from hybrid import cli
from hybrid.errors import ConfigError, HybridError
from hybrid.routes import monitoring
from hybrid.routes.answers import Problem, answer_for_the_router, bare, package_problem
from hybrid.routes.bounds import answer_refusal
from hybrid.routes.client import client_file
from hybrid.routes.openapi import openapi
from hybrid.routes.origins import share
from hybrid.routes.pages import live, ready
from hybrid.routes.reading import polling, sse
from hybrid.routes.sending import publish, test


def make_blueprint() -> Blueprint:
    """The blueprint `hybrid` with all endpoints of the contract."""
    blueprint = Blueprint("hybrid", "hybrid", template_folder="templates")
    blueprint.add_url_rule("/sse", view_func=sse, methods=["GET", "POST"])
    blueprint.add_url_rule("/polling", view_func=polling, methods=["GET", "POST"])
    blueprint.add_url_rule("/test", view_func=test, methods=["POST"])
    blueprint.add_url_rule("/publish", view_func=publish, methods=["POST"])
    monitoring.add_rules(blueprint)
    blueprint.add_url_rule("/client/<filename>", view_func=client_file)
    blueprint.add_url_rule("/client/<version>/<filename>", view_func=client_file)
    blueprint.add_url_rule("/health/live", view_func=live)
    blueprint.add_url_rule("/health/ready", view_func=ready)
    blueprint.add_url_rule("/openapi.json", view_func=openapi)
    blueprint.record(_stand_alone)
    blueprint.record(_take_a_prefix_with_variables)
    blueprint.record(answer_for_the_router)
    cli.register(blueprint)
    answer_problems(blueprint)
    return blueprint


def _stand_alone(setup: BlueprintSetupState) -> None:
    """Refuse to be inside of another blueprint, or there twice.

    Under another name `init_app` would not know it and mount it once more, past what guards the
    outer one; limiters, form guards and `url_for` would not know it either.
    """
    if setup.app.url_map.host_matching:
        # The routes of a blueprint can name no host, and one without is reached by none.
        raise ConfigError(
            "Flask(host_matching=True) is not supported: Hybrid's routes name no host, so none"
            " would reach them. Fix: serve this host by an app of its own, without host_matching,"
            " or use subdomains (subdomain_matching=True and SERVER_NAME)"
        )
    if setup.name_prefix or setup.name != setup.blueprint.name:
        raise ConfigError(
            "Hybrid's blueprint is registered under the name"
            f" {'.'.join(filter(None, (setup.name_prefix, setup.name)))!r}: register it on the app"
            " itself and under its own name, app.register_blueprint(realtime.blueprint,"
            " url_prefix='/outer/live'), or set HYBRID_URL_PREFIX"
        )


def _take_a_prefix_with_variables(setup: BlueprintSetupState) -> None:
    """Keep the variables of a prefix like `/<lang>/live` from views that do not ask for them.

    They are for the application, whose `url_value_preprocessor` may take them out, and need not.
    """
    prefix, subdomain = setup.url_prefix or "/", setup.subdomain or ""
    if "<" not in prefix + subdomain:
        return
    theirs = Rule(prefix, subdomain=subdomain)
    theirs.bind(Map(converters=setup.app.url_map.converters))
    views = setup.app.view_functions
    for endpoint in [name for name in views if name.startswith(f"{setup.name}.")]:
        views[endpoint] = _without(theirs.arguments, views[endpoint])


def _without(names: Collection[str], view: RouteCallable) -> RouteCallable:
    @wraps(view)
    def called(**values: Any) -> Any:
        return view(**{name: value for name, value in values.items() if name not in names})

    return called


def answer_problems(blueprint: Blueprint) -> None:
    """Let errors below this blueprint be answered as problem details, and nothing set a cookie."""
    blueprint.after_request(lambda response: share(bare(response)))
    blueprint.register_error_handler(Problem, answer_refusal)
    blueprint.register_error_handler(HybridError, package_problem)
    blueprint.register_error_handler(HTTPException, answer_refusal)
