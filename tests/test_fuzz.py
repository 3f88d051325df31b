"""Ten thousand requests that nobody would send, over every endpoint of the OpenAPI document."""

import json
import random
import re
import signal
import string
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from werkzeug.test import EnvironBuilder, run_wsgi_app

from hybrid import Identity
from servers import PREFIX
from sites import Site

REQUESTS = 12_000
SECRET = "only-for-the-victim"
KEY = "a key of the publishers"

HOSTILE = [
    "", " ", "0", "-1", "1e9", "9" * 400, "NaN", "null", "true", "a" * 300, "a" * 9000,
    "\0", "\r\nX: y", "\n", "\u2028", "\ufeff", "\x85", "é", "日本", "😀", "\udcff", "%00", "%",
    "../../etc/passwd", "<script>alert(1)</script>", "'; DROP TABLE x;--", "{{7*7}}", "${7*7}",
    "{hybrid}:log", "*", "?", "[", "a|b", "e.1.x", "e.-1.x", "e." + "9" * 30 + ".x", "..", "victim",
    "hybrid.bye", "hybrid.hello", "Bearer x", "application/json", "[]", "{}", "0x10", "\uff11",
]  # fmt: skip


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(HEARTBEAT_SECONDS=0.1, PUBLISH_KEY=KEY, MAX_EVENT_BYTES=4096, HISTORY_EVENTS=300)
    site.realtime.can_test(lambda who: who.user == "tester")
    site.realtime.can_monitor(lambda who: who.user in ("tester", "operator"))
    site.realtime.can_operate(lambda who: who.user == "operator")
    site.realtime.identify(lambda: None)
    site.realtime.authorize(lambda who, topic: topic.startswith("open"))
    yield site
    site.app.extensions["hybrid"].instance().stop()


class Fuzzer:
    """Makes requests from the document: half of what it says, half of what it does not."""

    def __init__(self, dice: random.Random, document: Any) -> None:
        self.dice = dice
        self.document = document
        self.operations = [
            (path, method, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        self.seen: list[str] = ["0"]
        """Cursors that the server gave."""

    def text(self) -> str:
        dice = self.dice
        if dice.random() < 0.6:
            return dice.choice(HOSTILE)
        alphabet = string.printable + "éß日😀\u2028\0\x7f\x9f"
        return "".join(dice.choice(alphabet) for _ in range(dice.randrange(12)))

    def value(self, schema: Any, depth: int = 0) -> Any:
        """Something that the schema allows, or not."""
        dice = self.dice
        if "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if depth > 4 or dice.random() < 0.08:
            return self.junk(depth)
        if "anyOf" in schema:
            return self.value(dice.choice(schema["anyOf"]), depth)
        if "enum" in schema:
            return dice.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            return {
                name: self.value(inner, depth + 1)
                for name, inner in schema["properties"].items()
                if dice.random() < 0.6
            }
        if kind == "array":
            return [self.value(schema["items"], depth + 1) for _ in range(dice.randrange(4))]
        if kind == "integer":
            return dice.choice([0, 1, -1, 17, 1000, 1001, 2**53, 10**30])
        if kind == "number":
            return dice.choice([0, 0.01, 0.02, -1, 26, 1e300])
        if kind == "string":
            return dice.choice(["tick", "open1", "alice", self.text()])
        return self.junk(depth)

    def junk(self, depth: int) -> Any:
        dice = self.dice
        leaf: list[Any] = [None, True, 0, -1.5, 1e308, 10**40, self.text(), "x" * 5000, [], {}]
        if depth > 4 or dice.random() < 0.7:
            return dice.choice(leaf)
        inner = [self.junk(depth + 1) for _ in range(dice.randrange(4))]
        return inner if dice.random() < 0.5 else {self.text(): each for each in inner}

    def request(self) -> tuple[str, str, Any, dict[str, Any]]:
        dice = self.dice
        path, method, operation = dice.choice(self.operations)
        concrete = re.sub(r"\{\w+\}", lambda _: self.path_part(), path)
        query: list[tuple[str, str]] = []
        headers: list[tuple[str, str]] = [("X-User", dice.choice(["alice", "tester", "operator"]))]
        for parameter in operation["parameters"]:
            if parameter["in"] == "path" or dice.random() < 0.4:
                continue
            given = self.value(parameter["schema"])
            for each in given if isinstance(given, list) else [given]:
                text = each if isinstance(each, str) else json.dumps(each)
                if parameter["name"] in ("since", "cursor", "Last-Event-ID"):
                    text = dice.choice([*self.seen[-20:], self.text()])
                if parameter["in"] == "query":
                    query.append((parameter["name"], text))
                else:
                    headers.append((parameter["name"], text))
        if dice.random() < 0.1:
            query.append((self.text(), self.text()))
        # No poll is to be held for long: the test is about answers.
        query = [(k, v) for k, v in query if k != "wait" or not re.fullmatch(r"[0-9.]{1,10}", v)
                 or float(v if v.count(".") < 2 and v != "." else "99") < 0.05]  # fmt: skip
        if dice.random() < 0.15:
            name = dice.choice(["Origin", "Sec-Fetch-Site", "Accept", "Cookie", "X-Forwarded-For"])
            headers.append((name, self.text()))
        options: dict[str, Any] = {"method": method.upper()}
        if dice.random() < 0.05:
            options["method"] = dice.choice(["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "FROB"])
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            body = json.dumps(self.value(schema)).encode()
            if dice.random() < 0.1:
                body = dice.choice(
                    [b"", b"{", b"\xff\xfe", b"[" * 5000, b"NaN", b'{"a":1,"a":2}', b"\0"]
                )
            options["data"] = body
            options["content_type"] = (
                "application/json"
                if dice.random() < 0.9
                else re.sub("[\r\n]", "", dice.choice(HOSTILE[:20]))
            )
        if path == "/publish" and dice.random() < 0.8:
            headers.append(("Authorization", f"Bearer {KEY}"))
        clean = [
            (name, value.encode("utf-8", "replace").decode("latin-1"))
            for name, value in headers
            if not re.search("[\r\n\0]", value)  # no server lets these through
        ]
        safe = [(k.encode("utf-8", "replace").decode(), v.encode("utf-8", "replace").decode())
                for k, v in query]  # fmt: skip
        return path, concrete, operation, options | {"query_string": safe, "headers": clean}

    def path_part(self) -> str:
        part = self.text().encode("utf-8", "replace").decode()
        part = part.replace("/", "").replace("?", "")
        return part or "hybrid.js"


def test_ten_thousand_strange_requests(site: Site, seed: int) -> None:
    """No 500, no hang, no cookie, nothing of another user; every answer is one of the document's.

    What is streamed is read up to its first events and closed; no slot stays taken.
    """
    from flask import request

    document = site.get("/openapi.json").get_json()
    site.realtime.identify(lambda: Identity(request.headers.get("X-User")))
    dice = random.Random(seed)
    fuzzer = Fuzzer(dice, document)
    validators = {
        name: Draft202012Validator({**schema, "components": document["components"]})
        for name, schema in document["components"]["schemas"].items()
    }

    def overdue(*_: object) -> None:
        raise TimeoutError(f"no answer: {asked}")

    old = signal.signal(signal.SIGALRM, overdue)
    answers: Counter[tuple[str, int]] = Counter()
    asked: Any = None
    try:
        for number in range(REQUESTS):
            if number % 50 == 0:
                site.realtime.emit("secret", SECRET, users=["victim"])
                site.emit("for all")
                fuzzer.seen.append(site.realtime.cursor())
            path, concrete, operation, options = fuzzer.request()
            asked = (concrete, options)
            signal.alarm(20)
            environ = EnvironBuilder(PREFIX + concrete, **options).get_environ()
            answer, status_line, headers = run_wsgi_app(site.app, environ)
            body = iter(answer)
            status = int(status_line.split()[0])
            method = options["method"]
            if status == 200 and headers["Content-Type"].startswith("text/event-stream"):
                pieces = [] if method == "HEAD" else [next(body)]
                if pieces and b'resumed":true' in pieces[0]:
                    pieces.append(next(body))
                text = b"".join(pieces)
            else:
                text = b"".join(body)
            answer.close()  # type: ignore[attr-defined] # werkzeug's iterator has one
            signal.alarm(0)
            answers[path, status] += 1
            assert status != 500, asked
            assert "Set-Cookie" not in headers, asked
            # an operator may read any event; that it was read is logged
            assert SECRET.encode() not in text or path == "/monitor/event", asked
            if status >= 400 and method != "HEAD":
                problem = json.loads(text)
                assert headers["Content-Type"] == "application/problem+json", asked
                validators["Problem"].validate(problem)
                assert (status in (429, 503)) <= ("Retry-After" in headers), asked
            if method.lower() in document["paths"][path] and "\\" not in concrete:
                known = {int(code) for code in operation["responses"]}
                # 308: a file that is named with two slashes has another address
                known |= {404, 308} if "{" in path else set()
                assert status in known, (asked, text)
            if path == "/polling" and status == 200 and method == "GET":
                validators["Poll"].validate(json.loads(text))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    print(sorted(answers.items()))
    assert {path for path, _ in answers} == set(document["paths"])
    assert site.hub.held() == 0
    # The fuzz got through: each endpoint has also been used as it should be.
    assert min(answers[path, 200] for path in ("/sse", "/polling", "/monitor/connections")) > 50
    assert min(answers["/publish", 201], answers["/test", 201]) > 3


def test_the_document_names_every_endpoint_and_no_other(site: Site) -> None:
    """With its methods: a new endpoint comes with its description."""
    document = site.get("/openapi.json").get_json()
    named = {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    found = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.removeprefix(PREFIX)), method)
        for rule in site.app.url_map.iter_rules()
        if rule.endpoint.startswith("hybrid.")
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    assert named == found
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": PREFIX}]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
