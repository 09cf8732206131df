# `make` prints the targets. Every target passes ARGS="..." on to the command it runs.
.DEFAULT_GOAL := help
ARGS ?=
CLI := node bin/rcm-bridge.js
SOURCES := $(shell find src -type f -name '*.ts') tsconfig.json tsconfig.build.json

.PHONY: help setup build distill test test-long lint format clean distclean test-gpu digits-teacher bench-kernels bench-network bench-bridge gpu-bundle

help: ## this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-16s %s\n", $$1, $$2}'

node_modules/.package-lock.json: package.json package-lock.json
	npm ci
	@touch $@

dist/.built: node_modules/.package-lock.json $(SOURCES)
	rm -rf dist
	node_modules/.bin/tsc -p tsconfig.build.json
	@touch $@

build: dist/.built ## install the Node packages and compile src/ into dist/

setup: build ## build, and make the Python environment if none on this machine will do (asks nothing)
	$(CLI) env setup --yes $(ARGS)

distill: build ## distil the shipped digits teacher: the whole path, some minutes on two cores
	$(CLI) distill --yes $(ARGS)

# The tools for testing live in .dev/, beside the environment that users get and never inside it.
.dev/.ready: dist/.built py/requirements-dev.lock
	$(CLI) env setup --yes
	node scripts/setup-dev.mjs
	@touch $@

test: .dev/.ready ## lint, types, unit, contract, integration and end-to-end tests; prints the slowest
	bash scripts/test.sh $(ARGS)

test-long: .dev/.ready ## what takes long: kills, soak, fifty tries, other Node versions, the environment, a browser
	bash scripts/test-long.sh $(ARGS)

test-gpu: .dev/.ready ## the kernels against fp64 and the trainer against the CPU, on this machine's GPU
	$(MAKE) -C kernels test-gpu PYTHON="PYTHONPATH=$(CURDIR)/.dev $$($(CLI) env path)" ARGS="$(ARGS)"
	PYTHONPATH="$(CURDIR)/.dev:$(CURDIR)/py:$(CURDIR)/kernels" $$($(CLI) env path) -m pytest -c py/pyproject.toml --rootdir . -m gpu -rs test/py

lint: .dev/.ready ## formatters, linters and type checkers of both languages, changing nothing
	bash scripts/lint.sh

format: .dev/.ready ## write the formatting that `lint` asks for
	bash scripts/lint.sh --write

digits-teacher: build ## make the shipped data file, classifier and teacher again (about ten minutes)
	bash scripts/digits-teacher.sh $(ARGS)

bench-kernels: build ## the attention kernels' table, on this machine's GPU (ARGS="--out DIR")
	$(MAKE) -C kernels bench-kernels PYTHON="$$($(CLI) env path)" ARGS="$(ARGS)"

bench-network: build ## whole networks, plain and dual, forward and backward, on this machine's GPU (ARGS="--case NAME --out FILE")
	"$$($(CLI) env path)" scripts/bench-network.py $(ARGS)

bench-bridge: build ## latencies of the border between Node and Python, fifty tries each
	bash scripts/bench-bridge.sh $(ARGS)

gpu-bundle: build ## pack what a GPU machine without Node and network needs for scripts/on-gpu.sh (ARGS="--python 3.12")
	bash scripts/gpu-bundle.sh $(ARGS)

# A pattern cannot be phony: FORCE makes it run each time.
reproduce-%: build FORCE ## a preset's whole run, resumable (STEPS= GPUS= NODES= DRY_RUN=1 RUN_DIR= PROMPTS= SAMPLES= ARGS="--set ...")
	@STEPS='$(STEPS)' GPUS='$(GPUS)' NODES='$(NODES)' DRY_RUN='$(DRY_RUN)' RUN_DIR='$(RUN_DIR)' PROMPTS='$(PROMPTS)' SAMPLES='$(SAMPLES)' bash scripts/reproduce.sh $* $(ARGS)
FORCE:

clean: ## remove what was built
	rm -rf dist coverage gpu-bundle *.tgz

distclean: clean ## remove what was installed here, too; runs/ stays
	rm -rf node_modules .dev
