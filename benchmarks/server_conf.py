"""gunicorn's settings under the benchmarks."""

worker_connections = 60_000
backlog = 8192
keepalive = 60
timeout = 300
control_socket_disable = True
