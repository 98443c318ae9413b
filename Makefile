# Homing. `make help` lists the targets.
PYTHON ?= python3
PY := .venv/bin/python

# Nothing here may reach a model hub; Flower stays on this machine.
export HF_HUB_OFFLINE = 1
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export RAY_USAGE_STATS_ENABLED = 0
export TOKENIZERS_PARALLELISM = false

.PHONY: help env demo test results privacy live synthetic cost audit attacks bench flower deployment deploy-test secure lint types unit clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

env: .venv/ready  ## make the environment, the default model and the default data

# The stamp is written last: after a failed first try the same command goes on where it was.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(PY) -m simulations fetch
	@touch $@

demo: env  ## personalize SmolLM2 for MovieLens users and print what it brought
	$(PY) -m simulations run demo

test: lint  ## lint, types, tests
	$(MAKE) -j 2 types unit

results: env  ## the README's tables: three seeds with every control, on three data sets (hours on two cores)
	for scenario in results sotu debian; do $(PY) -m simulations study $$scenario --seeds 3 || exit; done

privacy: env  ## the README's tables of what privacy costs: all users, and kinds of private adapters (an hour on two cores)
	for study in privacy kinds; do $(PY) -m simulations compare $$study || exit; done

live: env  ## ways to keep what was learnt over the periods of a life, on two data sets, into lives/
	for scenario in life life-sotu; do \
	  $(PY) -m simulations live $$scenario --keep sequential,replay,ewc:strength=100,olora,restart,slow_fast,retrain --seeds 3 || exit; done

synthetic: env  ## every aggregator on a task whose ideal aggregate is known, against what theory says, into studies/synthetic
	$(PY) -m simulations synthetic

cost: env  ## seconds and memory of every aggregator's step at the server, against users, into studies/cost
	$(PY) -m simulations cost

audit: env  ## attack the guarantees with canaries, into audit.json; without noise the attacks must succeed
	$(PY) -m simulations audit

attacks: env  ## what attacks read out of a release and an adapter, without noise and under guarantee E, into attacks.json
	$(PY) -m simulations attack

bench: env  ## speed against plain PEFT and Flower's Ray simulation, into bench.json; wants a quiet machine
	$(PY) -m simulations bench

flower: env  ## a real `flwr run` on Ray against the fused run of the same scenario
	$(PY) -m simulations.parity

deployment: env  ## the same over a real SuperLink and two SuperNodes on this machine
	$(PY) -m simulations.parity --deployment --nodes 2

deploy-test: env  ## a federation of three nodes behind nginx, broken on purpose in many ways, into deploy.json (wants nginx, half an hour)
	$(PY) -m simulations.deploy.trial

secure: env  ## a secure sum over a real SuperLink and three SuperNodes, one of which drops out
	HOMING_DEPLOYMENT=1 $(PY) -m pytest tests/server/test_secure_deployment.py

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: env
	$(PY) -m pyright

# Two processes; a file's tests stay together, as they share what they have made; the longest files come first (tests/conftest.py).
unit: env
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:  ## remove the environment and what tools left behind
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
