# `make demo` and `make test` are the two commands; each sets up by itself.
# Another Python: make test PYTHON=python3.13 (.venv is made anew for it).
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo

PY := $(VENV)/bin/python
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
STAMP := $(VENV)/installed-$(VERSION)

.PHONY: setup demo test quick rare-test fault-test test-torch test-tpu lint clean

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@case "$(VERSION)" in 3.11|3.12|3.13) ;; *) echo "astjax needs Python 3.11, \
	3.12 or 3.13, $(PYTHON) is $(VERSION): make PYTHON=python3.12 ..."; exit 1;; esac
	@echo "setting up $(VENV) with Python $(VERSION): a minute or two"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip
	@$(PY) -m pip install --quiet -r requirements.txt
	@$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

# Trains a small transformer on built-in sounds, then draws what it learned.
demo: setup
	$(PY) -m astjax.main --config=configs/demo.py --workdir=$(DEMO)
	$(PY) -m astjax.tools.report --workdir=$(DEMO)

# A file is one worker's: its trainings are made once. Half of the tests' time
# was XLA's compiler, which is twice as fast without its newest emitters; what
# is compared with the originals is compiled as a run is. (The jaxlib of Python
# 3.12 and 3.13 does not know that flag, and would end.)
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
QUICK := "not slow and not torch and not fault and not rare"
SOONER := $(if $(filter 3.11,$(VERSION)),XLA_FLAGS="$(XLA_FLAGS) \
	--xla_cpu_use_fusion_emitters=false")

# Everything that needs no network, no accelerator and no further data.
test: setup lint
	$(SOONER) $(PYTEST) --ignore tests/parity
	$(PYTEST) tests/parity

# What a developer runs between edits.
quick: setup
	$(SOONER) $(PYTEST) --ignore tests/parity -m $(QUICK)
	$(PYTEST) tests/parity -m $(QUICK)

# Full sizes, and what is seldom touched, with the emitters of a run: splits over
# processes are compared to 1e-5, which the older ones miss by a rounding.
rare-test: setup
	$(PYTEST) -m rare

# Kills, damage, full disks and other faults; as root also those that mount.
fault-test: setup
	$(PY) -m pytest -m fault

# Against torch, transformers and timm, in an environment of its own. Python 3.11
# has a torch without CUDA; elsewhere this fetches gigabytes.
test-torch:
	$(MAKE) setup VENV=.venv-torch
	.venv-torch/bin/python -m pip install --quiet torch==2.13.0 transformers==5.23.0
	.venv-torch/bin/python -m pip install --quiet --no-deps timm==1.0.31
	.venv-torch/bin/python -m pytest -m torch

# Compiles for TPUs that are not there, by libtpu, in an environment of its own.
test-tpu:
	$(MAKE) setup VENV=.venv-tpu
	.venv-tpu/bin/python -m pip install --quiet -r requirements-tpu.txt
	.venv-tpu/bin/python -m pytest tests/tools/test_aot.py

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) .venv-torch .venv-tpu runs build *.egg-info
