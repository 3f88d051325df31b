"""The tests' application with Flask-Compress, which is told to compress event streams as well."""

from flask_compress import Compress

from server_app import app

ALL = ["gzip", "br", "zstd", "deflate"]
app.config.update(
    COMPRESS_MIMETYPES=["text/plain", "text/event-stream"],
    COMPRESS_ALGORITHM=ALL,
    COMPRESS_ALGORITHM_STREAMING=ALL,
    COMPRESS_STREAMS=True,
)
Compress(app)


@app.get("/large")
def large() -> tuple[str, dict[str, str]]:
    return "large " * 1000, {"Content-Type": "text/plain"}
