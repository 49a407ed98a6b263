# Two commands do everything: `make demo` and `make test`. Both create .venv on first use.
PYTHON ?= python3
VENV ?= .venv
METHOD ?= ats
BIN := $(VENV)/bin
HEADERS := $(VENV)/headers

.PHONY: demo test lint clean benchmark

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[torch,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[rtx]' || echo "tensorrt_rtx is not available here: its engines are left out"
	touch $@

# NVIDIA's TensorRT headers (Apache-2.0) out of a public wheel, for compiling the plugin; without them those tests are skipped.
$(HEADERS)/.tried: $(VENV)/.installed
	mkdir -p $(HEADERS)
	PATH="$(abspath $(BIN)):$$PATH" sh plugins/fetch_headers.sh $(HEADERS) || echo "headers are not available here: the tests that compile against them are skipped"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/vitprune demo --method $(METHOD) --output demo-output

lint: $(VENV)/.installed
	$(BIN)/ruff check toolchain tests benchmarks recipes
	$(BIN)/ruff format --check toolchain tests benchmarks recipes
	$(BIN)/mypy

test: lint $(HEADERS)/.tried
	TENSORRT_INCLUDE_DIR=$(abspath $(HEADERS))/tensorrt ORT_INCLUDE_DIR=$(abspath $(HEADERS))/onnxruntime $(BIN)/python -m pytest

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/methods_speed.py
	$(BIN)/python benchmarks/dvt_reuse.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
