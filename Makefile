# Each target does its own set-up. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test test-frontend test-sam soak faults fuzz bench bench-check lint deny sbom build deploy parameters \
  invoke-mirror

# cargo-nextest where it is installed: one summary, and a process for each test.
TEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

setup: ## install what the other targets need: tools by apt, Python pieces into .venv
	@scripts/setup

run: setup ## show both functions at work on this machine, then serve; ARGS=--once ends instead
	@cargo build --workspace --bins
	@exec target/debug/sandbox $(ARGS)

test: ## run every test, against a real Mailman, real Redis and AWS's emulator; ARGS go to the test runner
	@scripts/setup test
	@cargo build --workspace --all-targets
	@cargo $(TEST) --workspace --all-targets $(ARGS)

test-frontend: ## test the front end's module, and its demo page in Chromium before the real verify function
	@scripts/setup frontend
	@cargo build --workspace --bins
	@cd frontend && npm ci --no-audit --no-fund --loglevel=error && npm test

test-sam: setup ## build both functions for both processors, and run them in containers by sam local; needs Docker, or root
	@.venv/bin/python scripts/sam

soak: ## try the mirror at random against a model of it; ARGS='--minutes 5 --seed N'
	@scripts/setup test
	@cargo build --workspace --bins
	@target/debug/soak $(ARGS)

faults: ## try every fault of every service on both functions, with a table; then some 200 times; ARGS=mirror for one
	@scripts/setup test
	@cargo build --workspace --bins
	@target/debug/faults $(ARGS)

fuzz: ## fuzz whatever is read from outside, a minute each; ARGS='600 tokens' for ten minutes of one
	@scripts/setup fuzz
	@fuzz/run $(ARGS)

bench: ## measure both functions beside their peers, and write the figures into docs/performance.md; ARGS='--only PART'
	@scripts/setup bench
	@cargo build --release -p verify -p mirror -p benches
	@target/release/bench $(ARGS)

bench-check: ## see whether a hot path takes more instructions than it used to; ARGS=--accept keeps to the new count
	@scripts/setup bench
	@cargo build --release -p verify -p mirror -p benches
	@target/release/bench check $(ARGS)

lint: ## check the format and the lints
	@cargo fmt --all --check
	@cargo fmt --manifest-path fuzz/Cargo.toml --check
	@cargo clippy --workspace --all-targets -- -D warnings

deny: ## see whether the dependencies are allowed, needed and without known holes
	@scripts/setup supply
	@scripts/deny

sbom: ## write what both functions are built from into target/sbom, as CycloneDX
	@scripts/setup supply
	@python3 ops/sbom.py

build: setup ## build both functions for Lambda into target/lambda; ARGS=--arm64 for arm64
	@PATH="$(CURDIR)/.venv/bin:$$PATH" cargo lambda build --release --bin verify --bin mirror $(ARGS)

deploy: setup ## build and deploy the stack; SET='MirrorApply=true' changes a parameter, ARCH the processor
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python ops/deploy.py $(ARGS)

parameters: setup ## ask for each parameter and write it to SSM; ARGS='--only NAME' changes one
	@PATH="$$PATH:$(CURDIR)/.venv/bin" .venv/bin/python ops/parameters.py $(ARGS)

invoke-mirror: setup ## run the mirror once and show its report; ARGS=--dry-run, '--force LIST', --explain
	@PATH="$$PATH:$(CURDIR)/.venv/bin" .venv/bin/python ops/invoke_mirror.py $(ARGS)
