# Every target sets up what it needs in a virtual environment of its own.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
PIP = $(BIN)/pip --disable-pip-version-check
# With a GPU the fused kernels need their extra, and the versions of PyTorch and Triton go together.
GPU := $(shell command -v nvidia-smi)
EXTRA = $(if $(GPU),[gpu])
CONSTRAINTS = $(if $(GPU),constraints-gpu.txt,constraints.txt)
TORCH_CPU = torch==2.13.0+cpu
TORCH_CPU_INDEX = https://download.pytorch.org/whl/cpu

GPU_RESULTS = $(filter-out %-cpu.json,$(wildcard benchmarks/results/engine-*.json))

.PHONY: install install-dev compiled demo test test-gpu lint format docs clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# A machine without an NVIDIA driver gets PyTorch's CPU build; the CUDA packages are never downloaded there.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	test -n '$(GPU)' \
	|| $(PIP) install --quiet '$(TORCH_CPU)' \
	|| $(PIP) install --quiet --index-url $(TORCH_CPU_INDEX) '$(TORCH_CPU)'
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(CONSTRAINTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.$(EXTRA)'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml $(CONSTRAINTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@ $(VENV)/.installed

# A wheel whose request path is compiled.
compiled: install-dev
	HATCH_BUILD_HOOKS_ENABLE=1 $(PIP) wheel --no-deps --wheel-dir dist .

demo: install
	$(BIN)/flame demo

test: install-dev
	$(BIN)/pytest -n 2 --dist worksteal -m "not gpu"

test-gpu: install-dev
	$(BIN)/pytest -m gpu

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install-dev
	$(BIN)/python docs/modules.py
	for document in $(GPU_RESULTS); do $(BIN)/flame bench table $$document --into README.md || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
