PYTHON ?= python3
BERTH = .venv/bin/berth

.DEFAULT_GOAL := help
.PHONY: up down status logs test check bench migrate gen help ready

up: ready ## Start everything on this machine, deploy the example, print the addresses
	@$(BERTH) up

down: ready ## Stop everything that was started here; apps and money stay in the state folder
	@$(BERTH) down

status: ready ## What runs here, and where it listens
	@$(BERTH) status

logs: ready ## The platform's last words; FOLLOW=1 goes on, NAME=postgres|nats|traefik|dockerd for another
	@$(BERTH) logs $(if $(FOLLOW),--follow) $(NAME)

test: ready ## Run the tests; ARGS="tests/billing -k charge" for some of them
	@mkdir -p .cache
	@rm -f .cache/junit*.xml
	@.venv/bin/pytest -n 3 -ra --durations=25 --junitxml=.cache/junit.xml $(ARGS) || \
	  .venv/bin/python -m tests.again $$? $(ARGS)

check: ready ## Style, types and who may import whom
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: ready ## Measure every figure against its baseline; NAME=deploy for one
	@.venv/bin/python -m bench $(NAME)

migrate: ready ## Bring the schemas of the running database up to date
	@$(BERTH) with-settings migrate

gen: ready ## Write again what is generated: .env.example, the golden events, the flow table, a node's requirements
	@$(BERTH) settings > .env.example
	@.venv/bin/python -m tests.contracts.generate
	@.venv/bin/python -m tests.flow
	@.venv/bin/python -m berth_node.lock > deploy/node/berth_node/requirements.new \
	&& mv deploy/node/berth_node/requirements.new deploy/node/berth_node/requirements.txt

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

ready:
	@$(PYTHON) deploy/embedded/bootstrap.py
