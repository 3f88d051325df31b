# Two commands matter: `make run` and `make test`. Everything else is here to be read.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HOST ?= 127.0.0.1
export PORT ?= 8000

.PHONY: run test packages lint types js unit bench clean

# Serve the demo: gunicorn with gevent, in memory, no Redis, no Node.
run: $(VENV)/.run
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

unit: $(VENV)/.test
	$(BIN)/python -m pytest

bench: $(VENV)/.test
	$(BIN)/python benchmarks/fanout.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

clean:
	rm -rf $(VENV) instance .pytest_cache .mypy_cache .ruff_cache .hypothesis
