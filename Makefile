# `make demo` and `make test` are the two commands; each sets up by itself.
# Another Python: make test PYTHON=python3.13 (with an own VENV=... if you like).
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO ?= runs/demo

.PHONY: setup demo test quick lint clean

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(0 if (3, 11) <= v <= (3, 13) else "astjax needs Python 3.11 to \
	3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

# Trains a small transformer on built-in sounds, then draws what it learned.
demo: setup
	$(PY) -m astjax.main --config=configs/demo.py --workdir=$(DEMO)
	$(PY) -m astjax.tools.report --workdir=$(DEMO)

# Everything that needs no network, no accelerator and no further data.
test: setup lint
	$(PY) -m pytest -n 2 --dist worksteal

# What a developer runs between edits.
quick: setup
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow"

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
