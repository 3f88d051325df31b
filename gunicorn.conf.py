"""gunicorn's settings for the demo; a start for your own. Read from the working directory."""

import os

bind = f"{os.environ.get('HOST', '127.0.0.1')}:{os.environ.get('PORT', '8000')}"
# One worker until there is a bus between workers: memory:// knows only its own process.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
worker_class = "gevent"
# A quarter more than HYBRID_MAX_CONNECTIONS. At this number gunicorn stops accepting and new
# clients just hang, health checks too; the lower cap of our own answers 503 in time.
worker_connections = 12_500
timeout = 60
graceful_timeout = 10
keepalive = 5
# Restarting a worker that holds streams is an outage: it stops accepting at once, and is
# replaced only when the last stream is gone.
max_requests = 0
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
# Opened by default since gunicorn 25, in the home directory, for anyone of the same user.
control_socket_disable = True
