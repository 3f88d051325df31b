"""Whose pages may ask: this site's own, and those of the origins that are allowed by name.

A page of another site can make a browser send requests with its user's cookies, though not read
the answers. Sending is refused for what acts, and for streams and polls too, which would cost a
slot each. Browsers say where a request comes from in Sec-Fetch-Site, older ones in Origin; a
client that says neither is no browser and has no cookies of a victim.
"""

import ipaddress
import re

from flask import Response, current_app, request

from hybrid.routes.answers import Problem, app_state

PREFLIGHT_SECONDS = "600"
TOKENS = re.compile("[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1024}")
LOCAL_NAME = re.compile("[a-z0-9_-]{1,63}")
"""A name without a dot, as of a service in a network of containers."""
READABLE = "Retry-After, X-Realtime-Cursor"
"""Headers of ours that a script of another origin may see."""


def require_same_origin() -> None:
    """Refuse what a page of another site asks for; 403."""
    if not _is_ours():
        raise Problem(403, "Forbidden", "only pages of this site may do this")


def require_own_origin() -> None:
    """As `require_same_origin`, but nobody is allowed by name: who may read need not act."""
    if not _is_from_here():
        raise Problem(403, "Forbidden", "only pages of this site may do this")


def require_same_origin_or_link() -> None:
    """As `require_same_origin`, but a link that opens the page in a window is no harm."""
    headers = request.headers
    is_link = (
        request.method in ("GET", "HEAD")
        and headers.get("Sec-Fetch-Mode") == "navigate"
        and headers.get("Sec-Fetch-Dest") == "document"
    )
    if not is_link:
        require_same_origin()


def _is_ours() -> bool:
    return _is_from_here() or _allowed_origin() is not None


def _is_from_here() -> bool:
    environ = request.environ
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or origin.lower() == _own_origin()


def _own_origin() -> str:
    """The origin of a page of this site, as browsers write it: without the scheme's own port."""
    scheme = request.scheme
    return f"{scheme}://{host_of().removesuffix({'http': ':80', 'https': ':443'}.get(scheme, ''))}"


def host_of() -> str:
    """The host as the client wrote it: Werkzeug's is empty for names with an underscore, which
    are names all the same, and its URL is not to be had for some."""
    return str(request.environ.get("HTTP_HOST") or request.host).strip().lower()


def is_own_host() -> bool:
    """Whether the request names this machine: by an address, as localhost, by a name without a dot,
    or by one that the application has set (`TRUSTED_HOSTS`, `SERVER_NAME`).

    No public name can be one of the first three, so none can be made to lead here.
    """
    config = current_app.config
    if config.get("TRUSTED_HOSTS"):
        return True  # Flask has refused all others
    name = host_of()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    own = (config.get("SERVER_NAME") or "localhost").lower().partition(":")[0]
    if name == own or name.endswith((f".{own}", ".localhost")) or LOCAL_NAME.fullmatch(name):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _allowed_origin() -> str | None:
    """The request's Origin, if it is allowed: compared whole, never by pattern or prefix."""
    origin: str | None = request.environ.get("HTTP_ORIGIN")
    return origin if origin in app_state().settings.cors_origins else None


def share(response: Response) -> Response:
    """Let the allowed origins read the answer."""
    if not app_state().settings.cors_origins:
        return response
    response.vary.add("Origin")
    origin = _allowed_origin()
    if origin is None:
        return response
    # The origin itself, never `*`: credentials are for those who are named.
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Allow-Credentials"] = "true"
    response.headers["Access-Control-Expose-Headers"] = READABLE
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        asked = request.headers.get("Access-Control-Request-Headers", "")
        response.headers["Access-Control-Allow-Methods"] = ", ".join(sorted(response.allow))
        if TOKENS.fullmatch(asked):
            response.headers["Access-Control-Allow-Headers"] = asked
        response.headers["Access-Control-Max-Age"] = PREFLIGHT_SECONDS
    return response
