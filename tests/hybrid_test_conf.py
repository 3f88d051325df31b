"""gunicorn's settings under the tests."""

worker_connections = 5000
graceful_timeout = 2
keepalive = 2
