# Every target installs what it needs into $(VENV) and reuses an existing installation.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart digits test test-fast lint test-long cluster cluster-down test-cluster faults measure-mlflow measure-report measure-scale measure-slots speed speed-gpu speed-gpu-more speed-peers speed-cpu clean
.DEFAULT_GOAL := help

help:           ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.bench   ## compare three methods on real digits (minutes) and write a report
	$(BIN)/deelbo-bench run quickstart

digits: $(VENV)/.bench       ## compare all methods: three priors, two sizes, three seeds (about an hour)
	$(BIN)/deelbo-bench run digits

TEST_WORKERS ?= 2
test: $(VENV)/.test          ## run the test suite, except tests marked long or cluster; TEST_WORKERS=2
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-fast: $(VENV)/.test     ## run the test suite without tests marked slow
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not slow and not cluster and not long"

lint: $(VENV)/.test          ## run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

CLUSTER ?= deelbo-cluster
cluster: $(VENV)/.bench      ## start a Ray cluster and MLflow on loopback; WORKERS=2 CPUS=1 DASHBOARD_PORT=8265 ...
	@$(BIN)/python -m cluster.local up --folder $(CLUSTER)

cluster-down: $(VENV)/.bench ## stop the processes that `make cluster` started
	@$(BIN)/python -m cluster.local down --folder $(CLUSTER)

test-long: $(VENV)/.test     ## run tests that take minutes: the paper's benchmark on small files, all faults on one storage
	$(BIN)/python -m pytest -m long

CLUSTER_TESTS ?= tests
test-cluster: $(VENV)/.test  ## run tests that start clusters of several nodes here (half an hour; some need root)
	$(BIN)/python -m pytest -m cluster $(CLUSTER_TESTS)

faults: $(VENV)/.test        ## inject faults and check recovery (26 minutes); FAULTS="--only driver --times 3"
	$(BIN)/python -m tests.faults $(FAULTS)

measure-mlflow: $(VENV)/.test   ## what `sync` of 1,000 trials to a local MLflow server costs, as JSON (two minutes)
	$(BIN)/python -m tests.performance.mlflow_sync

measure-report: $(VENV)/.test   ## measure the time of a report, as JSON (15 minutes); PUBLISHED=folder of the authors' files
	$(BIN)/python -m tests.performance.report $(if $(PUBLISHED),--published $(PUBLISHED))

measure-scale: $(VENV)/.test    ## measure the overhead of 10,000 trials that train nothing, as JSON (15 minutes)
	$(BIN)/python -m tests.performance.scale

measure-slots: $(VENV)/.test    ## measure the utilization of 1, 2, 4 and 8 simulated nodes (10 minutes)
	$(BIN)/python -m tests.performance.slots

speed: $(VENV)/.bench        ## time a training step of each method, as JSON
	$(BIN)/deelbo-bench speed

# on a bare machine: make speed-gpu SPEED_PYTHON=python3
SPEED_PYTHON ?= $(BIN)/python
speed-gpu:      ## test and time the paper's networks on a GPU (7 minutes); OUT=folder of the results
	PYTHON=$(SPEED_PYTHON) bash tests/performance/gpu.sh

speed-gpu-more: ## a plain baseline, compiled ViT-B/16 and other optimizers on a GPU (5 minutes)
	PYTHON=$(SPEED_PYTHON) bash tests/performance/gpu.sh more

speed-peers: $(VENV)/.test   ## time LearnedL2 beside SGD, AdamW and IVON (ResNet-18 at 64 px; minutes)
	$(BIN)/deelbo-bench speed --peers

# images are small so that a CPU can do it: only ratios are meaningful
speed-cpu: $(VENV)/.bench    ## time steps of the paper's networks on this CPU; into docs/speed_results (15 minutes)
	for network in "resnet50 64" "vit_b_16 64" "convnext_tiny 64"; do set -- $$network; \
	  $(BIN)/deelbo-bench speed --backbone $$1 --batch 32 --size $$2 --stored 32 --channels 3 --channels-last \
	    --rounds 5 --steps 1 --naive-steps 1 --threads 2 --profile --out docs/speed_results || exit 1; done

clean:          ## remove the virtual environment and caches; benchmark results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) found, 3.11 or newer needed: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# -e: the installed commands run this checkout
$(VENV)/.bench: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing; torch alone is about 6 GB with its CUDA libraries"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench,methods]'
	@touch $@

$(VENV)/.test: $(VENV)/.bench
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@
