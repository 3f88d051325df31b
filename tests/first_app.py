"""The tests' application as the first process of a container: `CMD ["python", "app.py"]`."""

import sys

from gevent.pywsgi import WSGIServer

from server_app import app

if __name__ == "__main__":
    with app.app_context():
        app.extensions["hybrid"].instance()
    WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None).serve_forever()
