# The commands of this project; `make` alone lists them. Each makes .venv first, and again when the lock changes.

VENV ?= .venv
BENCH ?= step
WORKERS ?= 2
UV ?= uv
PY := $(VENV)/bin/python
# File by file, for the tests of a file share compiled programs.
SHARED := -n $(WORKERS) --dist loadfile
# On jax 0.10 two batches of LAPACK's solves at once may wait for each other for ever where two threads share them.
NPROC ?= 8
export VENV NPROC

.DEFAULT_GOAL := help
.PHONY: help venv demo test slow bench notebooks docs grid lint format lock clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1	\2/p' Makefile | expand -t 18
	@echo "Another Python, beside the first: make test PYTHON=3.11 VENV=.venv-3.11"

venv: ## make the virtual environment, and no more
	@sh scripts/bootstrap.sh

demo: venv ## train a variational autoencoder; DATA=folder reads the images there
	"$(PY)" notebooks/vae.py $(if $(DATA),--data "$(DATA)")

test: venv ## run the tests, but for the slow ones; ARGS="-k iwae" goes to pytest, WORKERS=0 to one process
	"$(PY)" -m pytest -q $(SHARED) $(ARGS)

slow: venv ## run the slow tests
	"$(PY)" -m pytest -q -m slow $(SHARED) $(ARGS)

bench: venv ## run the benchmark BENCH=step; ARGS=--quick for a short one
	"$(PY)" -m benchmarks $(BENCH) $(ARGS)

# Two at a time, for most of each is compilation, on one core.
notebooks: venv ## run every notebook, small
	@mkdir -p out/notebooks
	@printf '%s\n' notebooks/[!_]*.py notebooks/*/[!_]*.py | VIJAX_SMALL=1 MPLBACKEND=Agg \
		xargs -P $(or $(filter-out 0,$(WORKERS)),1) -I '{}' sh scripts/notebook.sh "$(PY)" '{}'

docs: ## build the documentation into out/docs
	@sh scripts/bootstrap.sh docs
	"$(PY)" -m sphinx -W -b html docs out/docs

grid: venv ## print docs/grid.md anew, from its tests: more than half an hour
	"$(PY)" -m pytest -q -m "" tests/laws/test_grid.py
	"$(PY)" scripts/grid.py

lint: venv ## check style, layout and types
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy

format: venv ## mend style and layout
	"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .

# Universal: one lock for every system and for Python 3.11 (JAX 0.10) to 3.14 (JAX 0.12). Without header, annotations and
# index it names no registry. Kept out: docs, cuda (gigabytes) and coding (no wheels for Linux on ARM).
lock: ## pin the requirements anew; UPGRADE=1 to the newest. Needs uv, or UV=path/to/uv
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade) \
		--extra nn --extra dist --extra diagnostics --extra checkpoint --extra notebooks --extra bench \
		--group test --group build pyproject.toml -o requirements.lock
	@! grep -n '://' requirements.lock

clean: ## remove the virtual environments, caches and builds; results in out/ stay
	rm -rf .venv .venv-* build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .jupyter_cache
	find vijax tests notebooks benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
