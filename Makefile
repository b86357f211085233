# Two commands do everything: `make demo` and `make test`. Both install what is missing and say so.
.DEFAULT_GOAL := help
.PHONY: help setup demo up down status check format test bench latency performance docs notebooks deep-dives soak rabbit-million lock
SHELL := /bin/sh
BIN := .venv/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install everything into .venv (does nothing when nothing changed)
	@./bootstrap
	@$(BIN)/python -m streaming.cluster.jars
	@$(BIN)/python -m experiments.processors

demo: setup ## real Kafka, generators, transformers, sinks and Dagster; prints what landed; leaves the lab running
	@$(BIN)/streamgauge demo

up: setup ## start the lab
	@$(BIN)/streamgauge up

down: ## stop the lab; nothing is left running
	@test ! -x $(BIN)/streamgauge || $(BIN)/streamgauge down

status: setup ## what runs
	@$(BIN)/streamgauge status

check: setup ## format, lint, types, import contracts, container files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile docker/stand-ins/*/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/yamllint --strict --config-file docker/yamllint.yaml docker

format: setup ## format and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check ## check, then every test on real brokers
	$(BIN)/python -m pytest

bench: setup ## rates as ratios to bare clients in one run: Kafka, RabbitMQ queues (PerfTest) and streams (rstream)
	@$(BIN)/python -m experiments.bench

latency: setup ## how long a message is under way on Kafka, a quorum queue and a stream, by rate (about 8 minutes)
	@$(BIN)/python -m experiments.bench.latency

performance: setup ## profile seven roles on Kafka, two of them on RabbitMQ too; write docs/performance.md (about 20 minutes)
	@$(BIN)/python -m experiments.profiles.performance

docs: setup ## make the generated parts of the pages and the figures anew
	@$(BIN)/python -m docs.generate

notebooks: setup ## execute the notebooks on real brokers, keep their outputs, write docs/exercises.md
	@$(BIN)/python -m orchestration.notebooks

deep-dives: setup ## the deep dives' pages, from the runs in the lab's home (measure first: streamgauge experiment run all)
	@$(BIN)/python -m experiments.pages docs/deep-dives

soak: setup ## ten minutes of roles on real brokers: does memory or a handle grow?
	@$(BIN)/python -m experiments.soak --minutes 10

rabbit-million: setup ## 1,000,000 messages on queues, then on streams, under kills and cuts; writes docs/rabbitmq-million.md (as long as the faults take)
	@$(BIN)/python -m orchestration.million --page docs/rabbitmq-million.md

lock: setup ## resolve the dependencies anew and pin them by hash
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    --python-version 3.11 --extra dev --extra notebook --extra containers --quiet --upgrade pyproject.toml -o requirements.lock
	$(BIN)/python -m streaming.cluster.jars --lock
	$(BIN)/python -m experiments.processors --lock
