"""gunicorn's settings for the demo; a start for your own. Read from the working directory."""

import logging.config
import os

# For what gunicorn does not log itself: the package and the application, with time, process and
# level as gunicorn's own lines have them. `logconfig_dict` would switch on the access log as well.
# An application that sets up its logging with `dictConfig` replaces this.
logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "format": "[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s",
                "datefmt": "%Y-%m-%d %H:%M:%S %z",
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {"hybrid": {"level": "INFO"}},
    }
)

host = os.environ.get("HOST") or "127.0.0.1"
bind = f"{f'[{host}]' if ':' in host else host}:{os.environ.get('PORT') or 8000}"
# One on memory://, which knows only its own process; as many as there are cores with Redis.
workers = int(os.environ.get("WEB_CONCURRENCY") or 1)
worker_class = "gevent"
# A quarter more than HYBRID_MAX_CONNECTIONS. At this number gunicorn stops accepting and new
# clients just hang, health checks too; the lower cap of our own answers 503 in time.
worker_connections = 12_500
# The most that gunicorn takes, for addresses that name many topics; its default is half of that.
limit_request_line = 8190
timeout = 60
graceful_timeout = 10
keepalive = 5
# A worker that reaches it stops accepting at once and is replaced only when its last request is
# done. Should it be set all the same, the hook moves its clients on.
max_requests = 0
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
# Opened by default since gunicorn 25, in the home directory, for anyone of the same user.
control_socket_disable = True


def post_worker_init(worker):  # type: ignore[no-untyped-def] # gunicorn's own name and shape
    """Let a worker that reaches max_requests say goodbye to its streams."""
    # Not at the top: the master would keep this version when a reload brings a new one.
    from hybrid.drain import watch_worker

    watch_worker(worker)


def worker_int(worker):  # type: ignore[no-untyped-def] # gunicorn's own name and shape
    """Let a worker leave once: Ctrl-C reaches it by the terminal, and again by the master.

    The second would break into its goodbyes, and show as a traceback.
    """
    if getattr(worker, "interrupted", False):
        from gevent import GreenletExit

        raise GreenletExit
    worker.interrupted = True
