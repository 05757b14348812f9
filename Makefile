# Everything sets itself up: an environment for Python in the cache (.ci/venv), the lab's kernel and
# image in the cache (netns-lab/lab). What a stage runs is written in tests/stages.py.

PYTHON ?= python3
export PYTHON

venv = $$(.ci/venv)
stage = venv=$(venv) && VENV_PYTHON=$$venv/bin/python $(PYTHON) tests/stages.py

.PHONY: help demo failover test setup lint types unit sim soak lab lab-long lab-virtual week year bench \
	bench-peers clean
.NOTPARALLEL:

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | \
		expand -t 14

demo: ## two hosts whose VXLAN is ESP, live, in the lab
	@if test -t 1 && test -z "$$NO_COLOR"; then set -- --env FORCE_COLOR=1; fi; \
		netns-lab/lab exec --timeout 120s "$$@" -- python3 -m scenarios.demo

failover: ## everything that can break, VXLAN and RDS, both keyings; docs/failover.md's table
	@netns-lab/lab exec --cpus 2 --timeout 240m --mount docs:/docs -- \
		python3 -m scenarios.failover --page /docs/failover.md $(ARGS)

test: ## lint, types, unit, sim, lab, lab-ike, lab-kinds and lab-virtual, each whatever became of the others
	@$(stage)

setup: ## make ready what test and demo need
	@$(stage) build

lint: ## ruff
	@$(stage) lint

types: ## mypy --strict
	@$(stage) types

unit: ## unit and property tests, the import law
	@$(stage) unit

sim: ## whole clusters from seeds
	@$(stage) sim

FOR ?= 10m
soak: ## whole clusters from seeds that no run has seen, for as long as asked (FOR=10m)
	@venv=$(venv) && $$venv/bin/python -m tests.sim.soak --for $(FOR) $(ARGS)

lab: ## tests on the lab's kernel, with charon, and of all kinds of flow
	@$(stage) lab lab-ike lab-kinds

lab-long: ## the lab's tests that wait long: frozen and crashed charons, moves between keyings
	@$(stage) lab-long

lab-virtual: ## days of operation in virtual time
	@$(stage) lab-virtual

week: ## a week by IKE in virtual time, a packet a second: about seven minutes
	@netns-lab/lab exec --clock virtual --timeout 60m \
		--env TUNSEC_LAB_DAYS=7 --env TUNSEC_LAB_RATE=1 -- \
		python3 -m pytest tests/lab/test_virtual_week.py -s

year: ## three hosts through 365 days of troubles, in virtual time (ARGS="--seed 2 --from 41 ...")
	@netns-lab/lab exec --clock virtual --memory 4G --timeout 24h -- \
		python3 -m scenarios.year $(ARGS)

bench: ## XFRM programming beside `ip -batch` and ready-made bytes
	@mkdir -p bench-results
	@netns-lab/lab exec --timeout 20m --mount bench-results:/results -- \
		python3 netns-lab/bench/xfrm_bench.py --json /results/xfrm.json

bench-peers: ## from `tunsec apply` to protected, for 1 and 100 peers, both keyings
	@mkdir -p bench-results
	@netns-lab/lab exec --timeout 20m --memory 8G --mount bench-results:/results -- \
		python3 netns-lab/bench/peers_bench.py --json /results/peers.json

clean: ## remove what was made in the checkout (the lab's cache: netns-lab/lab clean)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist bench-results
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
