# Each target builds its own environment in .venv; a second call installs nothing. `make` alone lists the targets.
PYTHON ?= python3
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q

.PHONY: help demo test soak check lint format clean

help:
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile

demo: .venv/installed ## from a handful of labels to a report, in minutes on a CPU
	.venv/bin/python -m semisynth demo

test: .venv/installed ## the tests, on two processes
	$(PYTEST) -n 2

soak: .venv/installed ## the long tests
	$(PYTEST) -m soak

check: lint test ## everything a change must pass

lint: .venv/installed ## formatting, lint rules and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy --strict semisynth

format: .venv/installed ## rewrite the code in the house format
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format .

clean: ## remove what tools left behind; .venv stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find semisynth tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("semisynth needs Python 3.10 or newer; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@echo "Installing semisynth into .venv: about a minute, longer where torch must be downloaded."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@
