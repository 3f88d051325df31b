"""Report approvals: a small application that shows flask-hybrid at work.

Employees submit reports; a manager or the admin approves or rejects them; every open dashboard
that may see a report changes at once. `python app.py` serves it on one's own machine, wsgi.py
is for a real server. It knows of flask-hybrid what its documentation says, and nothing else.
"""

import sys

if __name__ == "__main__":
    # gevent has to replace the blocking parts of the standard library before they are imported.
    try:
        from gevent import monkey

        monkey.patch_all()
        for package in ("flask", "redis", "flask_limiter"):
            __import__(package)
    except ImportError as missing:
        sys.exit(
            f"{missing.name} is not installed. Install what is needed with:\n"
            f"  {sys.executable} -m pip install -r requirements.txt"
        )

import errno
import os
import secrets
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    g,
    jsonify,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from hybrid import Hybrid, HybridError, Identity

if TYPE_CHECKING:
    from gevent.pywsgi import WSGIServer

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers then send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
}
MAX_TITLE, MAX_NOTE = 120, 500
MAX_CENTS = 100_000_000
MAX_REPORTS = 500
"""How many of the newest reports a dashboard shows."""

Report = dict[str, Any]

realtime = Hybrid()
pages = Blueprint("pages", __name__)


# -- who is who


@dataclass(frozen=True, slots=True)
class User:
    """One of the demo's people."""

    name: str
    role: str
    does: str

    @property
    def id(self) -> str:
        return self.name.lower()

    @property
    def decides(self) -> bool:
        """Whether they see all reports and approve or reject them."""
        return self.role in ("manager", "admin")


USERS = {
    user.id: user
    for user in (
        User("Ada", "employee", "Submits reports, sees her own"),
        User("Ben", "employee", "Submits reports, sees his own"),
        User("Chloe", "employee", "Submits reports, sees her own"),
        User("Mara", "manager", "Sees all reports, approves and rejects"),
        User("Ole", "admin", "As Mara; also deletes, reads the monitor"),
    )
}


NAMES = {user.id: user.name for user in USERS.values()}


def logged_in() -> User | None:
    """The user of this request, None when nobody is logged in."""
    return USERS.get(session.get("user", ""))


def required(allowed: Callable[[User], bool] = lambda user: True) -> User:
    """The user of this request; 401 without one, 403 for one who is not allowed."""
    user = logged_in()
    if user is None:
        abort(401, "Log in first.")
    if not allowed(user):
        abort(403, "That is not yours to do.")
    return user


@realtime.identify
def identify() -> Identity | None:
    """Who opens a stream or polls; nobody does without having logged in."""
    user = logged_in()
    return Identity(user.id, roles={user.role}) if user else None


@realtime.authorize
def may_read(identity: Identity, topic: str) -> bool:
    """The topics carry what the dashboard shows, as HTML: one's own reports, or all of them."""
    decides = not identity.roles.isdisjoint({"manager", "admin"})
    return topic == f"html:{identity.user}" or (topic == "html:all" and decides)


@realtime.can_monitor
@realtime.can_test
def is_admin(identity: Identity) -> bool:
    """The admin alone reads the monitor and sends test events to others."""
    return "admin" in identity.roles


# -- the application


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The demo application, with its database created and filled if there is none yet.

    Settings come from `FLASK_` environment variables and then from `config`. DATABASE is the
    path of the SQLite file, by default in the instance folder. SECRET_KEY may also be the
    environment variable of that name; without one it is made once and kept in the instance
    folder, so that all workers share it and a restart logs nobody out.
    Several processes may call this at the same time on an empty folder.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        DATABASE=str(Path(app.instance_path, "reports.sqlite3")),
        MAX_CONTENT_LENGTH=16 * 1024,
        # Cookies know no ports: on one's own machine many a program sets a "session".
        SESSION_COOKIE_NAME="approvals",
        SESSION_COOKIE_SAMESITE="Lax",
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    if not app.config["SECRET_KEY"]:
        app.config["SECRET_KEY"] = os.environ.get("SECRET_KEY") or stored_secret(app)
    create_once(Path(app.config["DATABASE"]), fill_database)
    app.teardown_appcontext(close_database)
    app.register_blueprint(pages)
    realtime.init_app(app)
    return app


def stored_secret(app: Flask) -> str:
    """The secret kept in the instance folder, made when there is none."""
    path = Path(app.instance_path, "secret_key")
    create_once(path, lambda new: new.write_text(secrets.token_hex(32)))
    return path.read_text()


def create_once(path: Path, write: Callable[[Path], object]) -> None:
    """Make a file, readable by its owner alone, unless it exists.

    It is written under another name and linked when complete: of several processes that start
    together one wins, and nobody ever reads half a file.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        draft = Path(folder, path.name)
        draft.touch(mode=0o600)
        write(draft)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first; its file is as good


# -- the database

SCHEMA = """
CREATE TABLE report (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- a deleted report's number is never used again
    version INTEGER NOT NULL DEFAULT 1,    -- counts changes; tells a page which state is newer
    author TEXT NOT NULL,
    title TEXT NOT NULL,
    cents INTEGER NOT NULL,
    note TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'approved', 'rejected')),
    comment TEXT NOT NULL DEFAULT '',
    submitted_at INTEGER NOT NULL,         -- Unix milliseconds, as are all times
    decided_by TEXT,
    decided_at INTEGER
);
CREATE INDEX report_by_author ON report (author, submitted_at);
"""

# author, title, cents, note, minutes since it was submitted; how, why and when (minutes ago) it
# was decided, if it was
Decision = tuple[str, str, int]
SEED: tuple[tuple[str, str, int, str, int, Decision | None], ...] = (
    ("ben", "Train to Hamburg, client workshop", 18640, "Second class, flexible fare", 17, None),
    ("ada", "Usability lab, two days", 124000, "Six participants incl. incentives", 52, None),
    ("chloe", "Standing desk, home office", 48900, "", 190, None),
    ("ada", "Conference ticket, PyCon DE", 42000, "Early bird until Friday", 1500,
        ("approved", "Enjoy, and tell us about it on Monday.", 1320)),
    ("ben", "Team dinner, Q3 release", 31275, "Nine people", 2980, ("approved", "", 2700)),
    ("chloe", "Noise-cancelling headphones", 37900, "Open-plan office", 4460,
        ("rejected", "We have two spare pairs: ask at reception.", 4300)),
    ("ada", "Software licence, annual", 22800, "Renewal", 7350, ("approved", "", 7200)),
    ("chloe", "Taxi, airport to Leipzig office", 5480, "Last train was cancelled", 8900,
        ("approved", "", 8800)),
)  # fmt: skip


def fill_database(path: Path) -> None:
    """Create the tables and the reports that a new installation starts with."""
    now = unix_ms()
    with closing(sqlite3.connect(path)) as db, db:
        # Kept in the file: readers do not wait for a writer, nor a writer for readers.
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA)
        for author, title, cents, note, age, decision in sorted(SEED, key=lambda row: -row[4]):
            status, comment, decided = decision or ("waiting", "", 0)
            db.execute(
                "INSERT INTO report (author, title, cents, note, submitted_at, status, comment,"
                " decided_by, decided_at, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (author, title, cents, note, now - age * 60_000, status, comment)
                + (("mara", now - decided * 60_000, 2) if decision else (None, None, 1)),
            )


def database() -> sqlite3.Connection:
    """This request's connection, opened when first asked for."""
    if "database" not in g:
        g.database = sqlite3.connect(current_app.config["DATABASE"], timeout=10)
        g.database.row_factory = sqlite3.Row
    db: sqlite3.Connection = g.database
    return db


def close_database(_error: BaseException | None) -> None:
    """Close this request's connection, if there is one."""
    db = g.pop("database", None)
    if db is not None:
        db.close()


def visible_reports(user: User) -> list[Report]:
    """The reports that the user may see, newest first."""
    rows = database().execute(
        "SELECT * FROM report WHERE ? OR author = ? ORDER BY submitted_at DESC, id DESC LIMIT ?",
        (user.decides, user.id, MAX_REPORTS),
    )
    return [dict(row) for row in rows]


def find_report(number: int) -> Report:
    """One report; 404 when there is none."""
    row = database().execute("SELECT * FROM report WHERE id = ?", (number,)).fetchone()
    if row is None:
        abort(404, "This report does not exist any more.")
    return dict(row)


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


# -- pages


@pages.get("/")
def dashboard() -> str | AnyResponse:
    """The dashboard, or the way to log in."""
    return page("dashboard.html")


@pages.get("/react")
def react() -> str | AnyResponse:
    """The same dashboard in React."""
    return page("react.html")


@pages.get("/examples/htmx")
def htmx() -> str | AnyResponse:
    """The reports by htmx and its SSE extension, without a script of our own."""
    cursor = realtime.cursor()  # before the rows, as always
    user = logged_in()
    topic = f"html:{'all' if user and user.decides else user and user.id}"
    reports = user and visible_reports(user)
    return page("htmx.html", cursor=cursor, topic=topic, reports=reports)


@pages.get("/examples/htmx/reports")
def htmx_reports() -> str:
    """The rows of the htmx page."""
    user = required()
    return render_template(
        "htmx_reports.html", user=user, names=NAMES, reports=visible_reports(user)
    )


@pages.post("/examples/htmx/reports/<int:number>/<any(approved, rejected):status>")
def htmx_decide(number: int, status: str) -> tuple[str, int]:
    """Approve or reject from the htmx page; what changes comes as an event."""
    decide(number, status, "")
    return "", 204


@pages.get("/examples/eventsource")
def eventsource() -> str | AnyResponse:
    """What the browser's own EventSource makes of the stream."""
    return page("eventsource.html", cursor=realtime.cursor())


def page(template: str, **context: Any) -> str | AnyResponse:
    """A page for whoever is logged in, or else the way there."""
    user = logged_in()
    if user is None:
        return redirect(url_for("pages.login"))
    return render_template(template, user=user, names=NAMES, csp_nonce=csp_nonce, **context)


@pages.app_template_filter("moment")
def moment(ms: int) -> Markup:
    """A time as an element, for pages without a script that knows the reader's time zone."""
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), f"{at:%d %b %Y, %H:%M} UTC"
    )


def csp_nonce() -> str:
    """What allows this response's inline script, the import map, and no other."""
    if "csp_nonce" not in g:
        g.csp_nonce = secrets.token_urlsafe(16)
    nonce: str = g.csp_nonce
    return nonce


@pages.get("/login")
def login() -> str | AnyResponse:
    """Choose who to be."""
    if logged_in():
        return redirect(url_for("pages.dashboard"))
    return render_template("login.html", users=USERS.values())


@pages.post("/login")
def log_in() -> AnyResponse:
    """Become one of the users."""
    user = USERS.get(request.form.get("user", ""))
    if user is None:
        abort(400, "There is no such user.")
    session.clear()
    session["user"] = user.id
    return redirect(url_for("pages.dashboard"), 303)


@pages.post("/logout")
def log_out() -> AnyResponse:
    """Forget who this was, and end the streams that were opened as this user."""
    user = logged_in()
    session.clear()
    if user is not None:
        realtime.revoke(user=user.id)
    return redirect(url_for("pages.login"), 303)


# -- reports, as JSON


@pages.get("/reports")
@realtime.snapshot
def list_reports() -> Response:
    """The reports that the user may see, newest first, and the cursor that goes with them."""
    user = required()
    return jsonify(user=user.id, reports=visible_reports(user))


@pages.post("/reports")
def submit_report() -> tuple[Response, int]:
    """A new report by the user."""
    user = required(lambda user: user.role == "employee")
    fields = json_object()
    title = text(fields, "title", MAX_TITLE)
    if not title:
        abort(400, "A report needs a title.")
    new = (user.id, title, cents(fields), text(fields, "note", MAX_NOTE), unix_ms())
    with database() as db:
        number = db.execute(
            "INSERT INTO report (author, title, cents, note, submitted_at) VALUES (?, ?, ?, ?, ?)",
            new,
        ).lastrowid
    assert number is not None
    report = find_report(number)
    announce("report.submitted", report, by=user)
    return jsonify(report), 201


@pages.post("/reports/<int:number>/approve")
def approve_report(number: int) -> Response:
    """Approve a waiting report."""
    return jsonify(decide(number, "approved", comment()))


@pages.post("/reports/<int:number>/reject")
def reject_report(number: int) -> Response:
    """Reject a waiting report."""
    return jsonify(decide(number, "rejected", comment()))


def comment() -> str:
    """What the request says about a decision."""
    return text(json_object(), "comment", MAX_NOTE)


def decide(number: int, status: str, comment: str) -> Report:
    """Approve or reject; 409 when somebody else was quicker."""
    user = required(lambda user: user.decides)
    with database() as db:
        changed = db.execute(
            "UPDATE report SET status = ?, comment = ?, decided_by = ?, decided_at = ?,"
            " version = version + 1 WHERE id = ? AND status = 'waiting'",
            (status, comment, user.id, unix_ms(), number),
        ).rowcount
    report = find_report(number)
    if not changed:
        abort(409, f"This report has already been {report['status']}.")
    announce(f"report.{status}", report, by=user)
    return report


@pages.delete("/reports/<int:number>")
def remove_report(number: int) -> tuple[str, int]:
    """Delete a report for good."""
    user = required(lambda user: user.role == "admin")
    report = find_report(number)
    with database() as db:
        removed = db.execute("DELETE FROM report WHERE id = ?", (number,)).rowcount
    if removed:
        announce("report.removed", report, by=user)
    return "", 204


def announce(event: str, report: Report, *, by: User) -> None:
    """Tell every open dashboard that may see the report. Call it after the commit.

    Before it, a page could ask for the rows and not find what it was told about; and what is
    then rolled back would have been announced.
    """
    try:
        realtime.emit(
            event, {**report, "by": by.id}, users=[report["author"]], roles=["manager", "admin"]
        )
        # The same as HTML, for pages that ask for it by its topic: they have no script to draw it.
        what, title = event.removeprefix("report."), report["title"]
        html = render_template(
            "htmx_activity.html", what=what, by=by.name, title=title, at=unix_ms()
        )
        realtime.emit("html.activity", text=html, topics=[f"html:{report['author']}", "html:all"])
    except HybridError:
        # The report is stored and the user is to know; dashboards show it when next loaded.
        current_app.logger.exception("%s of report %s was not announced", event, report["id"])


# -- what a request says


@pages.before_request
def refuse_other_sites() -> None:
    """Let no other site's page act with this user's cookies.

    Every browser sends Origin with a POST or DELETE; a caller without one is no browser and has
    no cookies of a victim. Only the host is compared: a proxy may speak TLS in front of us.
    """
    origin = request.headers.get("Origin")
    reads_only = request.method in ("GET", "HEAD", "OPTIONS")
    if not reads_only and origin is not None and urlsplit(origin).netloc != request.host:
        abort(403, "Only pages of this site may do this.")


def json_object() -> dict[str, Any]:
    """The request's JSON object; 400 for anything else."""
    fields = request.get_json()
    if not isinstance(fields, dict):
        abort(400, "Send a JSON object.")
    return fields


def text(fields: dict[str, Any], name: str, longest: int) -> str:
    """A text field, trimmed; absent is empty."""
    value = fields.get(name, "")
    if not isinstance(value, str) or len(value) > longest:
        abort(400, f"The {name} must be a text of at most {longest} characters.")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which SQLite cannot store
        abort(400, f"The {name} contains a character that does not exist.")
    return value.strip()


def cents(fields: dict[str, Any]) -> int:
    """The field `amount`, a decimal number of euros, in cents."""
    try:
        amount = Decimal(str(fields.get("amount", ""))) * 100
        if amount == int(amount) and 0 < amount <= MAX_CENTS:
            return int(amount)
    except (InvalidOperation, ValueError, OverflowError):
        pass
    abort(400, f"The amount must be from 0.01 to {MAX_CENTS // 100:,} euros, with whole cents.")


@pages.app_errorhandler(HTTPException)
def explain(error: HTTPException) -> tuple[Response | str, int]:
    """Say what went wrong: as JSON to the dashboard's script, as a page to people."""
    code = error.code or 500
    if request.path.startswith(url_for("pages.list_reports")):
        return jsonify(error=error.description), code
    return render_template("error.html", error=error), code


@pages.after_app_request
def protect(answer: Response) -> Response:
    """What a page may load, and that it is nobody else's to keep.

    What the realtime blueprint answers is its own.
    """
    if request.blueprint != realtime.blueprint.name:
        answer.headers.update(SECURITY_HEADERS)
        if "csp_nonce" in g:
            policy = SECURITY_HEADERS["Content-Security-Policy"]
            allowed = policy.replace("script-src", f"script-src 'nonce-{g.csp_nonce}'")
            answer.headers["Content-Security-Policy"] = allowed
    if request.blueprint == pages.name:
        answer.headers["Cache-Control"] = "no-store"
    return answer


# -- serving it on one's own machine


def serve() -> None:
    """Serve on 127.0.0.1, at PORT (8000) or the next that is free, until Ctrl-C."""
    import gevent

    wanted = os.environ.get("PORT", "8000")
    if not wanted.isdecimal():
        sys.exit(f"PORT is {wanted!r}; it has to be a number.")
    server = listen(create_app(), int(wanted))
    # Not gevent's own signal_handler, which others cannot chain: streams are ended first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: gevent.spawn(server.stop))
    print(f"Report approvals: http://127.0.0.1:{server.server_port}/")
    print("Be Ada in one window and Mara in a private one.")
    print("Ctrl-C ends it.", flush=True)
    server.serve_forever()


def listen(app: Flask, wanted: int) -> "WSGIServer":
    """A server that listens at the wanted port or at the first free one after it."""
    from gevent.pywsgi import WSGIServer

    for port in range(wanted, wanted + 20):
        server = WSGIServer(("127.0.0.1", port), app, log=None)
        try:
            server.start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        if port != wanted:
            print(f"Port {wanted} is taken; this is the next free one.")
        return server
    sys.exit(f"The ports {wanted} to {port} are all taken; set PORT to a free one.")


if __name__ == "__main__":
    serve()
