"""gunicorn's settings for a preloaded application: patched before it is imported."""

from gevent import monkey

monkey.patch_all()

from hybrid_test_conf import graceful_timeout, keepalive, worker_connections  # noqa: E402

__all__ = ["graceful_timeout", "keepalive", "worker_connections"]
