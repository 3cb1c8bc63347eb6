# make quickstart     the whole chain on real digits, on a CPU, in one go
# make test           what every change must pass
# make help           the other targets
#
# PYTHON=/path/to/python3.11 make ...   picks the interpreter the environment is made with.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# two test processes, one thread each: arithmetic libraries otherwise start as many threads as there are cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -q

.DEFAULT_GOAL := help
.PHONY: help venv quickstart quickstart-full benchmark-mnist benchmark-fmnist test test-all planted lint format bench \
	clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

venv: $(STAMP) ## make .venv once, with the versions of constraints.txt
	@:

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or type PYTHON=/path/to/python3.11 make venv" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; type PYTHON=/path/to/python3.11 make venv" >&2; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || \
		{ echo "error: $(PYTHON) cannot make environments; install its venv module (python3-venv)" >&2; exit 2; }
	@echo "installing into $(VENV) (a few minutes and about 6 GB the first time)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[quickstart,dev,text]'
	@touch $(STAMP)

quickstart: venv ## private fine-tuning of the shipped public model on real digits, sampling, scores, small
	@VENV=$(VENV) bash scripts/quickstart.sh

quickstart-full: venv ## the same with the public autoencoder and latent diffusion model trained first
	@VENV=$(VENV) bash scripts/quickstart.sh --full

# one epsilon after the other: EPSILON="1 10" OPTIONS="--repeat 3" make benchmark-mnist
EPSILON ?= 1 10
OPTIONS ?=
# rows beside the private ones, such as BASELINES="statistics direct"; all of them take hours
BASELINES ?=

benchmark-mnist: venv ## private MNIST from the public model to one table; goes on where it was stopped
	@$(BIN)/python scripts/benchmark.py configs/benchmark/mnist-glyphs.yaml --epsilon $(EPSILON) --baselines $(BASELINES) $(OPTIONS)

benchmark-fmnist: venv ## the same for Fashion-MNIST; OPTIONS=--quick shows the chain in minutes
	@$(BIN)/python scripts/benchmark.py configs/benchmark/fmnist.yaml --epsilon $(EPSILON) --baselines $(BASELINES) $(OPTIONS)

lint: venv ## style, import floors and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "error: type 'make format'" >&2; exit 1; }
	@$(BIN)/lint-imports
	@$(BIN)/python -m mypy

format: venv ## rewrite the files in the house style
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

test: lint ## lint, then the fast tests
	@$(PYTEST) -m "not slow and not gpu"

test-all: lint ## every test; those that need a GPU run only where there is one
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then $(PYTEST); \
		else echo "no GPU here: tests marked gpu are left out"; $(PYTEST) -m "not gpu"; fi

planted: venv ## plant each known privacy bug into a copy, one at a time, and see its test fail
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.planted.run

bench: venv ## speed, memory and start-up of training, written to results/performance.md after every case
	@$(BIN)/python benchmarks/performance.py

clean: ## remove the environment and all caches, keep runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
