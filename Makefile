# `make demo`  sets up .venv and runs the whole chain on the embedded speech (TARGET=zh for Chinese)
# `make test`  sets up .venv and runs the tests
# `make test-comet`  installs the original COMET beside it (1.4 GB, minutes) and compares every segment's score
# `make test-gguf`  compiles llama-cpp-python (5 to 15 minutes) and runs what needs it
# `make test-vllm`  installs vLLM beside it (3.7 GB, minutes), loads a w4a16 export and compares tokens
# `make test-web`  installs playwright (45 MB) and, where it is missing, Debian's chromium, and drives the server's page
# `make lint types`  what .ci/run adds to that
PYTHON ?= python3
TARGET ?= de
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test test-comet test-gguf test-vllm test-web lint types clean

demo: $(READY)
	$(BIN)/sordino run recipes/demo.yaml target=$(TARGET)

test: $(READY)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

test-comet: $(READY)
	$(BIN)/python -m pytest -m isolated tests/metrics

test-gguf: $(READY)
	$(BIN)/python -c 'import llama_cpp' 2>/dev/null || \
		CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF $(CMAKE_ARGS)" $(BIN)/python -m pip install --editable '.[gguf]'
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/models/test_hybrid.py

test-vllm: $(READY)
	$(BIN)/python -m pytest -rs -m isolated tests/formats

test-web: $(READY)
	@test -n "$(CHROMIUM)" || command -v chromium >/dev/null || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y chromium; } || \
		{ echo "there is no chromium: install your system's package, or say make test-web CHROMIUM=/path/to/chrome"; exit 2; }
	$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/python -m pip install --quiet 'playwright>=1.65'
	$(BIN)/python -m pytest -m web tests/serve/test_browser.py

lint: $(READY)
	$(BIN)/ruff check src tests demo benchmarks
	$(BIN)/ruff format --check src tests demo benchmarks

types: $(READY)
	$(BIN)/mypy

# the package is installed editable, so only a change of what it depends on makes this run again
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sordino needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $(READY)

# leaves runs/ alone: they may be days of work
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
