"""The browser's files, and how a page asks for them."""

import gzip
from functools import lru_cache
from pathlib import Path

from flask import Response, current_app, request, url_for
from markupsafe import Markup

import hybrid
from hybrid.routes.answers import Bare, Problem, app_state
from hybrid.wire import to_json

YEAR = 31_536_000
STATIC = Path(__file__).parent.with_name("static")

# Some systems have no type for .js, or one that browsers refuse for modules, and take .ts for film.
TYPES = {
    ".js": "text/javascript",
    ".ts": "application/typescript",
    ".map": "application/json",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


def client_file(filename: str, version: str | None = None) -> Response:
    """GET /client/<file> and /client/<version>/<file>: the JavaScript and its types.

    Asked for with its version, in the path or as `?v=`, a file never changes. In the path it also
    holds for what a module imports.
    """
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    if filename not in files:
        raise Problem(404, "Not found", "there is no such file")
    path = files[filename]
    zipped = request.accept_encodings["gzip"] > 0
    body = compressed(path, path.stat().st_mtime_ns) if zipped else path.read_bytes()
    response = Bare(body, content_type=f"{TYPES[path.suffix]}; charset=utf-8")
    response.vary.add("Accept-Encoding")
    if zipped:
        response.content_encoding = "gzip"
    asked = version or request.args.get("v")
    if asked in (None, hybrid.__version__):
        response.cache_control.public = True
        if asked:
            response.cache_control.max_age = YEAR
            response.cache_control.immutable = True
        else:
            # Kept, but asked about each time: a file must not be older than one that imports it.
            response.cache_control.no_cache = True
    else:
        # A page of another version, as there are while servers are updated one by one: this is
        # not what its address says, so nobody is to keep it.
        response.cache_control.no_store = True
    response.add_etag()
    response.make_conditional(request)
    return response


@lru_cache(maxsize=32)
def compressed(path: Path, _changed: int) -> bytes:
    return gzip.compress(path.read_bytes(), 9, mtime=0)


# -- in templates


def url() -> str:
    """`{{ hybrid_url() }}`: where the blueprint is mounted, as the browser sees it."""
    return url_for(_endpoint("sse")).removesuffix("/sse")


def client_url(file: str = "hybrid.js") -> str:
    """`{{ hybrid_client_url("react.js") }}`: the address of a file, cached for ever."""
    return url_for(_endpoint("client_file"), filename=file, version=hybrid.__version__)


def client(
    file: str = "hybrid.global.js", *, nonce: str | None = None, defer: bool = False
) -> Markup:
    """`{{ hybrid_client() }}`: the script tag.

    The classic script, which sets the global `Hybrid`, unless `file` names a module. It is not
    deferred, so that the page's own scripts after it find the global, unless `defer` says so.
    """
    kind = Markup("") if file.endswith(".global.js") else Markup(' type="module"')
    later = Markup(" defer") if defer and not kind else Markup("")
    return Markup('<script src="{}"{}{}{}></script>').format(
        client_url(file), kind, later, _nonce(nonce)
    )


def importmap(modules: dict[str, str] | None = None, *, nonce: str | None = None) -> Markup:
    """`{{ hybrid_importmap({"react": …}) }}`: where modules find `flask-hybrid`, and `modules`.

    For pages without a bundler. It is an inline script, the only kind that there is of it: under a
    strict Content-Security-Policy it needs a nonce. It has to come before the first module.
    """
    small = "" if current_app.debug else ".min"
    ours = {"flask-hybrid": "hybrid", "flask-hybrid/react": "react"}
    ours["flask-hybrid/dashboard"] = "dashboard"
    imports = {name: client_url(f"{file}{small}.js") for name, file in ours.items()}
    # "</script>" in an address would end the script: JSON may spell it in another way.
    text = to_json({"imports": imports | (modules or {})}).replace("<", r"\u003c")
    return Markup('<script type="importmap"{}>{}</script>').format(_nonce(nonce), Markup(text))


TEMPLATE_GLOBALS = {
    "hybrid_url": url,
    "hybrid_client": client,
    "hybrid_client_url": client_url,
    "hybrid_importmap": importmap,
}


def _nonce(nonce: str | None) -> Markup:
    return Markup("") if nonce is None else Markup(' nonce="{}"').format(nonce)


def _endpoint(view: str) -> str:
    return f"{app_state().hybrid.blueprint.name}.{view}"
