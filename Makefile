# make quickstart                    the whole job on a plain CPU, about two minutes after installation
# make test                          the test suite; make test-slow has the rest
# make train RECIPE=recipes/X.yaml LAYOUT=single_gpu ARGS="--learning_rate 2e-6"
# make sft RECIPE=recipes/sft_X.yaml     the warm start; train-gsm8k, train-math, sft-gsm8k name a recipe of their own
PYTHON ?= python3
VENV ?= .venv
LAYOUT ?= single_gpu
ARGS ?=
BIN := $(VENV)/bin
# Real data for the tests that want it, where such a folder is there; those tests skip otherwise.
export GRPO_MATH_TEST_DATA ?= $(abspath ../shared/data)

.PHONY: install quickstart test test-slow lint train train-gsm8k train-math sft sft-gsm8k clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,quantization]"
	touch $@

quickstart: install
	$(BIN)/grpo-math quickstart $(ARGS)

test: install
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

LAYOUTS = $(basename $(notdir $(wildcard accelerate_configs/*.yaml)))
LAUNCH = $(if $(RECIPE),,$(error say which recipe: make $@ RECIPE=recipes/X.yaml)) \
	$(if $(filter $(LAYOUT),$(LAYOUTS)),,$(error no layout $(LAYOUT): use one of $(LAYOUTS))) \
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/$(LAYOUT).yaml

train: install
	$(LAUNCH) -m grpo_math.train --config $(RECIPE) $(ARGS)

sft: install
	$(LAUNCH) -m grpo_math.sft --config $(RECIPE) $(ARGS)

train-gsm8k: RECIPE ?= recipes/gsm8k_qwen2.5_1.5b.yaml
train-math: RECIPE ?= recipes/math_qwen2.5_math_1.5b.yaml
train-gsm8k train-math: train
sft-gsm8k: RECIPE ?= recipes/sft_gsm8k.yaml
sft-gsm8k: sft

clean:
	rm -rf $(VENV) *.egg-info src/*.egg-info .pytest_cache .ruff_cache .hypothesis
