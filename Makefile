# The two commands of the README: `make demo` (segment a phantom exam) and `make test` (the test suite).
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo
SOURCES := $(shell find src -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: demo test test-system lint bench bench-check docs-check soak clean help viewer viewer-check viewer-pictures

help:
	@echo "make demo         segment an exam of phantom mammograms with the bundled weights (no torch needed)"
	@echo "make test         make the test environment (.venv) and run the suite; PYTEST_ARGS='-k name' for a part of it"
	@echo "make test-system  the tests that need the Debian packages listed in .ci/debian-packages"
	@echo "make lint         format, lint, types and import contracts"
	@echo "make docs-check   whether the command line reference is up to date"
	@echo "make soak         long campaigns: overfitting with the full networks (needs the training data), kills, damaged input"
	@echo "make bench        how fast this machine is with phantoms, to bench/latest.json; BENCH_ARGS='--sections stages' for a part"
	@echo "make bench-check  whether the speed-up over PyTorch and ONNX Runtime is still what bench/latest.json says"
	@echo "make viewer       check, test and build the web viewer (needs node.js 20.19 or newer); its files are in the repository"
	@echo "make viewer-check whether the viewer's files in the repository are what its source gives"
	@echo "make viewer-pictures  take the pictures of docs/viewer.md again (needs Debian's chromium)"
	@echo "make clean        remove environments, the demo's output and builds"
	@echo "make help         this list"
	@echo "PYTHON=python3.12 chooses the Python (3.11 or newer) that environments are made with"

# Makes the environment $(1) if it is not there; says what to do where the Python is too old.
define environment
	@test -x $(1)/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mammoseg needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef

demo: $(DEMO_VENV)/.ready
	$(DEMO_VENV)/bin/mammoseg demo --out demo-output --overwrite

$(DEMO_VENV)/.ready: pyproject.toml constraints.txt $(SOURCES)
	$(call environment,$(DEMO_VENV))
	$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt .
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	$(call environment,$(VENV))
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not soak and not system" $(PYTEST_ARGS)

test-system: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m system $(PYTEST_ARGS)

soak: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -m soak --timeout 7200 $(PYTEST_ARGS)

lint: $(VENV)/.ready
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks $(BENCH_ARGS)

bench-check: $(VENV)/.ready
	$(VENV)/bin/python -m benchmarks check $(BENCH_ARGS)

docs-check: $(VENV)/.ready
	$(VENV)/bin/python -m mammoseg.apps.cli_reference --check docs/cli.md

viewer: viewer/node_modules/.ready
	cd viewer && npm run --silent check && npm run --silent test && npm run --silent build

viewer/node_modules/.ready: viewer/package-lock.json
	npm ci --prefix viewer --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

viewer-pictures: $(VENV)/.ready
	MAMMOSEG_PICTURES=docs/images OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m system tests/viewer/test_pictures.py

VIEWER_FILES := src/mammoseg/apps/server/static
viewer-check: viewer
	@test -z "$$(git status --porcelain -- $(VIEWER_FILES))" || { git status --short -- $(VIEWER_FILES); \
	  echo "the viewer's files are not what its source gives: run make viewer and commit $(VIEWER_FILES)" >&2; exit 1; }

clean:
	rm -rf viewer/node_modules $(VENV) $(DEMO_VENV) demo-output build dist
