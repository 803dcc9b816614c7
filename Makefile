# The first target prints the others: the text behind ## is their description.
PYTHON ?= python3
TARGET ?= de
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
CODE := src tests demo benchmarks

.DEFAULT_GOAL := help
.PHONY: help try demo test test-comet test-gguf test-ray test-vllm test-older test-web wheel-test lint format types clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

try: $(READY)  ## translate a few shipped clips with the shipped model: the first minute
	$(BIN)/sordino try

demo: $(READY)  ## the whole chain on the embedded speech (TARGET=zh: Chinese); about 10 minutes on 2 cores
	$(BIN)/sordino run demo target=$(TARGET)

test: $(READY)  ## the tests; about 10 minutes on 2 cores
	$(PYTEST)

test-comet: $(READY)  ## install the original COMET beside .venv (1.4 GB, minutes) and compare every segment's score
	$(PYTEST) -m isolated tests/metrics

test-gguf: $(READY)  ## compile llama-cpp-python (5 to 15 minutes) and run what needs it
	$(BIN)/python -c 'import llama_cpp' 2>/dev/null || \
		CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF $(CMAKE_ARGS)" $(BIN)/python -m pip install --editable '.[gguf]'
	$(PYTEST) tests/models/test_hybrid.py tests/serve/test_gguf.py

test-ray: $(READY)  ## rank and pseudo-label by a Ray cluster on this machine, with workers, nodes and drivers killed; 2 minutes
	$(PYTEST) -m ray tests/runtime/test_ray_workers.py tests/pipeline/test_cluster.py

test-vllm: $(READY)  ## install vLLM beside .venv (3.7 GB, minutes), compare its tokens with ours
	$(PYTEST) -rs -s -m isolated tests/formats

test-web: $(READY)  ## install playwright (45 MB) and, where it is missing, Debian's chromium; drive the server's page
	@test -n "$(CHROMIUM)" || command -v chromium >/dev/null || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y chromium; } || \
		{ echo "there is no chromium: install your system's package, or say make test-web CHROMIUM=/path/to/chrome"; exit 2; }
	$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/python -m pip install --quiet 'playwright>=1.65'
	$(PYTEST) -m web tests/serve/test_browser.py

test-older: $(READY)  ## install transformers 5.16.1 and 5.20.0 beside .venv (80 MB) and load what this one saves
	$(PYTEST) -m isolated tests/models

wheel-test: $(READY)  ## build the wheel and use it from an empty directory; a minute
	$(PYTEST) -m isolated tests/test_wheel.py

lint: $(READY)  ## rules and format of the code
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

format: $(READY)  ## mend what `make lint` can mend
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

# the package is installed editable, so only a change of what it depends on makes this run again
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sordino needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $(READY)

clean:  ## remove .venv and caches; runs/ stay, they may be days of work
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
