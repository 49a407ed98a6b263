# Two commands do everything: `make demo` and `make test`. Both create .venv on first use.
PYTHON ?= python3
VENV ?= .venv
METHOD ?= ats
# Test processes; each uses one thread.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
BIN := $(VENV)/bin
HEADERS := $(VENV)/headers
# 1: a test of the plugin that cannot run for want of a compiler or of headers fails. Empty: it is skipped and says why. Where
# there is a CUDA compiler (and in CI, see .ci/run) nothing is to be left out; `make test INSIST=` is for working offline.
INSIST ?= $(if $(shell command -v nvcc),1)

.PHONY: demo test lint clean benchmark

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[torch,train,tune,plots,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[rtx]' || echo "tensorrt_rtx is not available here: its engines are left out"
	touch $@

# NVIDIA's TensorRT headers (Apache-2.0), ONNX Runtime's and TensorRT's Python stubs out of public packages: what the plugin is
# compiled against and the TensorRT backend is checked against. No file is touched on failure, so the next run tries again.
$(HEADERS)/.fetched: $(VENV)/.installed plugins/fetch_headers.sh
	mkdir -p $(HEADERS)
	PATH="$(abspath $(BIN)):$$PATH" sh plugins/fetch_headers.sh $(HEADERS) && touch $@ \
		|| $(if $(INSIST),{ echo "the headers could not be fetched; 'make test INSIST=' goes on without them"; exit 1; },echo "no headers here: tests that need them are skipped")

# ONNX Runtime's headers (150 MB) are for its native operators; without them the demo times plain nodes and says so.
demo: $(VENV)/.installed
	@[ -d $(HEADERS)/onnxruntime ] || { mkdir -p $(HEADERS) && PATH="$(abspath $(BIN)):$$PATH" sh plugins/fetch_headers.sh $(HEADERS) onnxruntime; } \
		|| echo "no headers of ONNX Runtime here: its native operators are left out"
	@headers=$(abspath $(HEADERS)); if [ -d $$headers/onnxruntime ]; then export ORT_INCLUDE_DIR=$$headers/onnxruntime; fi; \
	$(BIN)/vitprune demo --method $(METHOD) --output demo-output

lint: $(VENV)/.installed
	$(BIN)/ruff check toolchain tests benchmarks recipes docs
	$(BIN)/ruff format --check toolchain tests benchmarks recipes docs
	$(BIN)/mypy

# Only folders that are there are named: a wrong name is an error, none is "not found".
test: lint $(HEADERS)/.fetched
	set -a; VITPRUNE_TEST_INSIST=$(INSIST); headers=$(abspath $(HEADERS)); \
	if [ -d $$headers/tensorrt ]; then TENSORRT_INCLUDE_DIR=$$headers/tensorrt; fi; \
	if [ -d $$headers/onnxruntime ]; then ORT_INCLUDE_DIR=$$headers/onnxruntime; fi; \
	if [ -d $$headers/stubs ]; then VITPRUNE_TENSORRT_STUBS=$$headers/stubs; fi; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/methods_speed.py
	$(BIN)/python benchmarks/dvt_reuse.py
	$(BIN)/python benchmarks/shipped.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
