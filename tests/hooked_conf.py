"""gunicorn's settings with the hook of the shipped gunicorn.conf.py."""

from typing import Any

from hybrid_test_conf import graceful_timeout, keepalive, worker_connections

__all__ = ["graceful_timeout", "keepalive", "post_worker_init", "worker_connections"]


def post_worker_init(worker: Any) -> None:
    """As shipped."""
    from hybrid.drain import watch_worker

    watch_worker(worker)
