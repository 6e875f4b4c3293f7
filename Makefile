# The two commands of the README: `make demo` (segment a phantom exam) and `make test` (the test suite).
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo
SOURCES := $(shell find src -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: demo test lint docs-check soak clean help

help:
	@echo "make demo   segment an exam of phantom mammograms with the bundled weights (no torch needed)"
	@echo "make test   make the test environment and run the suite"
	@echo "make lint   format, lint, types and import contracts"
	@echo "make soak   long kill-and-resume and fuzz campaigns"

demo: $(DEMO_VENV)/.ready
	$(DEMO_VENV)/bin/mammoseg demo --out demo-output --overwrite

$(DEMO_VENV)/.ready: pyproject.toml constraints.txt $(SOURCES)
	test -x $(DEMO_VENV)/bin/python || $(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt .
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not system and not soak" $(PYTEST_ARGS)

soak: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -m soak --timeout 7200 $(PYTEST_ARGS)

lint: $(VENV)/.ready
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs-check: $(VENV)/.ready
	$(VENV)/bin/python -m mammoseg.apps.cli_reference --check docs/cli.md

clean:
	rm -rf $(VENV) $(DEMO_VENV) demo-output build dist
