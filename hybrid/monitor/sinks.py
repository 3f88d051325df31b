"""Where alerts go: the log, the signal `hybrid.signals.alert`, a webhook."""

import json
import logging
import threading
import urllib.request
import weakref
from http.client import HTTPException
from typing import TYPE_CHECKING

from hybrid import signals
from hybrid.monitor.alerts import Change

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger("hybrid.alerts")

WEBHOOK_SECONDS = 5.0


class Sinks:
    """Tells of each change once. Never raises, never waits."""

    def __init__(self, app: "weakref.ref[Flask]", webhook: str | None) -> None:
        self._app = app
        self._webhook = webhook

    def __call__(self, change: Change) -> None:
        raised = change.kind == "raised"
        critical = raised and change.severity == "critical"
        # At least a warning: the end of an alert is to be read where its beginning was.
        level = logging.ERROR if critical else logging.WARNING
        logger.log(level, "alert %s %s: %s", change.rule, change.kind, change.why)
        app = self._app()
        if app is not None:
            signals.Teller(app).tell(
                signals.alert,
                message=change.why,
                active=raised,
                rule=change.rule,
                severity=change.severity,
                value=change.value,
            )
        if self._webhook is not None:
            threading.Thread(
                target=post, args=(self._webhook, change), name="hybrid-monitor", daemon=True
            ).start()


def post(url: str, change: Change) -> None:
    """POST the change as JSON; `text` is what Slack and its likes show."""
    severity = f"{change.severity}: " if change.kind == "raised" else ""
    body = {
        "text": f"{severity}{change.rule} {change.kind}: {change.why}",
        "rule": change.rule,
        "kind": change.kind,
        "severity": change.severity,
        "why": change.why,
        "value": change.value,
        "threshold": change.threshold,
        "at": change.at,
        "since": change.since,
    }
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS).close()
    except (OSError, ValueError, HTTPException) as error:
        # Without the URL, which is often a secret.
        logger.warning("the alert webhook failed: %s", type(error).__name__)
