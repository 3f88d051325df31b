# Two commands matter: `make run` and `make test`. Everything else is here to be read.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HOST ?= 127.0.0.1
export PORT ?= 8000

.PHONY: run test packages lint types js unit docs bench soak chaos clean fresh

# Serve the demo: gunicorn with gevent, in memory, no Redis, no Node.
run: $(VENV)/.run
	@$(BIN)/python -c 'import socket; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("$(HOST)", $(PORT)))' 2>/dev/null \
		|| { echo "port $(PORT) of $(HOST) is taken by another program; choose one: PORT=8124 make run" >&2; exit 1; }
	@echo "The demo is at http://$(HOST):$(PORT)/  (Ctrl-C ends it)"
	@$(BIN)/gunicorn wsgi:app

# Everything: system packages where it may install them, linters, types, JavaScript, Python.
test: packages $(VENV)/.test lint types js unit

packages:
	@sh tests/install-packages.sh

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

js:
	@sh tests/js.sh

# Two processes: each test brings servers and browsers of its own.
unit: $(VENV)/.test $(VENV)/.versions
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The documentation as a site, in build/docs; what the code says of itself is written anew.
docs: $(VENV)/.test
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

# Ten minutes of everything that can go wrong with Redis, and ten thousand histories without it.
chaos: $(VENV)/.test
	CHAOS=600 HISTORIES=10000 $(BIN)/python -m pytest -s tests/test_chaos.py tests/test_shared.py
	EVENTS=20000 MEGABYTES=150 $(BIN)/python -m pytest -s tests/test_client_chaos.py

bench: $(VENV)/.test
	@sh benchmarks/peers/install.sh
	$(BIN)/python -m benchmarks
	PYTHONPATH=. $(BIN)/python benchmarks/bus.py

# Twenty minutes of 2,000 streams that come and go: memory flat, no descriptor left, nothing lost.
soak: $(VENV)/.test
	$(BIN)/python -m benchmarks.soak

# A fresh clone in an empty directory runs both commands. Minutes: everything is installed anew.
fresh:
	@sh tests/fresh_clone.sh

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

# Other versions of Redis, Valkey and redis-py, to hold the bus against.
$(VENV)/.versions: tests/versions.txt tests/install-versions.sh | $(VENV)/bin/python
	@sh tests/install-versions.sh $(BIN)/python $(VENV)/versions
	@touch $@

clean:
	rm -rf $(VENV) instance .pytest_cache .mypy_cache .ruff_cache .hypothesis
