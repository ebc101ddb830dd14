# Every target sets up what it needs. VENV=... picks another virtual environment.

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
BENCHMARKS = $(wildcard benchmarks/bench_*.py)
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.PHONY: help demo test studies lint bench docs clean

help:
	@echo "make demo   compare the methods on measured traffic of gpt-oss-20b"
	@echo "make test   run tests, doctests, notebooks, and every benchmark once"
	@echo "make studies  run the long sweeps: proofs, damaged files, mutations (hours)"
	@echo "make lint   check style and types"
	@echo "make bench  measure the planners"
	@echo "make docs   build the documentation into build/docs"
	@echo "make clean  remove the virtual environment and all that was built"

demo: $(VENV)/.installed
	$(BIN)/craftopt compare gpt-oss-20b --batch 1024 --trace gpt-oss-20b --gpus 8 --nodes 2 --slots even --replicas-per-layer 8 --holdout odd-even --foreign sorry_bench_base

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --nbmake --benchmark-disable tests craftopt formulations tools $(NOTEBOOKS) $(BENCHMARKS)

studies: $(VENV)/.installed-dev
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -n 2 -m slow tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# numba's cache does not notice an edit in a callee in another file: compile anew.
bench: $(VENV)/.installed-dev
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	NUMBA_CACHE_DIR="$$cache" $(BIN)/python -m pytest --benchmark-columns=min,median,stddev,rounds $(BENCHMARKS)

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env docs build/docs

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .benchmarks

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# pip knows --group from 25.1 on; Python 3.11 brings an older one.
$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	touch $(VENV)/.installed $@
