# Each target sets up what it needs. `make` without a target lists them all.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run check test test-long test-ops test-frontend test-sam soak faults fuzz bench bench-check bench-build lint \
  quick-lint deny sbom build release deploy parameters probe invoke-mirror \
  status stop start remove doctor

# cargo-nextest, if it is installed: it prints one summary and runs each test in its own process.
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
TEST := $(if $(NEXTEST),nextest run,test)
# The arguments that run only the tests marked with `#[ignore = "long: …"]`.
ONLY_LONG := $(if $(NEXTEST),--profile long --run-ignored only --no-tests warn,-- --ignored)
# The command that deploys and operates a stack. Any AWS CLI will do for it, but what builds uses the pinned tools.
OPERATE := PATH="$$PATH:$(CURDIR)/ops/.venv/bin:$(CURDIR)/.venv/bin" ops/novi-bridge
PINNED := PATH="$(CURDIR)/ops/.venv/bin:$(CURDIR)/.venv/bin:$$PATH"
# What `make test-long` passes to soak.
MINUTES ?= 60

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

setup: ## install what the other targets need: tools with apt, Python packages into .venv
	@scripts/setup

run: setup ## demonstrate both functions on this machine, then serve; ARGS=--once exits instead
	@cargo build --workspace --bins
	@exec target/debug/sandbox $(ARGS)

check: quick-lint ## check format, prose, import cycles and lints, and run the unit tests: for each commit
	@cargo $(TEST) --workspace --lib $(ARGS)

test: ## run all tests against a real Mailman, a real Redis and AWS's Lambda emulator; ARGS go to the test runner
	@scripts/setup test
	@cargo build --workspace --all-targets
	@target/debug/shared_servers cargo $(TEST) --workspace --all-targets $(ARGS)

test-long: ## run what takes too long for make test: the tests marked as long, all faults, and soak for MINUTES=60
	@scripts/setup test long
	@cargo build --workspace --all-targets
	@failed=; \
	  target/debug/shared_servers cargo $(TEST) --workspace --all-targets $(ONLY_LONG) || failed+=" tests"; \
	  target/debug/faults || failed+=" faults"; \
	  target/debug/soak --minutes $(MINUTES) || failed+=" soak"; \
	  [ -z "$$failed" ] || { echo "make test-long: failed:$$failed" >&2; exit 1; }

test-ops: ## test the administrator's command against fakes of the AWS and SAM CLIs; needs only Python
	@printf 'tests.%s\n' $(basename $(notdir $(wildcard ops/tests/test_*.py))) | \
	  (cd ops && xargs -n 1 -P 4 python3 -m unittest --quiet)

test-frontend: ## test the front-end module, generated clients, and the demo page in Chromium against the real verify function
	@scripts/setup frontend
	@cargo build --workspace --bins
	@cd frontend && npm test

test-sam: setup ## build both functions for both architectures and run them with sam local; needs Docker or root
	@.venv/bin/python scripts/sam

soak: ## run a randomized, model-based test of the mirror; ARGS='--minutes 5 --seed N'
	@scripts/setup test
	@cargo build --workspace --bins
	@target/debug/soak $(ARGS)

faults: ## inject every fault of every service, print a table, then repeat six of them 200 times; ARGS=mirror tests one
	@scripts/setup test
	@cargo build --workspace --bins
	@target/debug/faults $(ARGS)

fuzz: ## fuzz every parser of external input for one minute each; ARGS='600 tokens' fuzzes one for ten minutes
	@scripts/setup fuzz
	@fuzz/run $(ARGS)

bench: ## benchmark both functions and their peers, and write the results to docs/performance.md; ARGS='--only PART'
	@scripts/setup bench
	@cargo build --release -p verify -p mirror -p benches
	@target/release/bench $(ARGS)

bench-check: bench-build ## check that no hot path takes more instructions than its baseline; ARGS=--accept updates the baseline
	@target/debug/bench check $(ARGS)

# What bench-check runs: both functions as they are in a release, for this machine's processor.
bench-build:
	@scripts/setup bench-check
	@$(PINNED) scripts/release --allow-dirty --no-sbom --output target/bench-check \
	  --architecture $(patsubst aarch64,arm64,$(shell uname -m))
	@cargo build --workspace --bins

lint: quick-lint ## check format, prose, import cycles, lints and docs; scripts/prose --report measures the prose
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# What make check and make lint share.
quick-lint:
	@cargo fmt --all --check
	@cargo fmt --manifest-path fuzz/Cargo.toml --check
	@python3 -m unittest discover --quiet -s scripts
	@scripts/prose
	@scripts/prose --report --quiet
	@scripts/cycles
	@cargo clippy --workspace --all-targets -- -D warnings

deny: ## check that all dependencies are allowed, used and free of known vulnerabilities
	@scripts/setup supply
	@scripts/deny

sbom: ## write a CycloneDX SBOM of each function to target/sbom
	@scripts/setup supply
	@python3 ops/sbom.py

build: ## build both functions for Lambda into target/lambda; ARGS=--arm64 builds for arm64
	@scripts/setup deploy
	@$(PINNED) cargo lambda build --release --bin verify --bin mirror $(ARGS)

release: ## build the release bundle into target/release-bundle: the same bytes for the same commit
	@scripts/setup deploy supply
	@python3 ops/sbom.py
	@$(PINNED) scripts/release $(ARGS)

# The administrator's commands, which ops/novi-bridge runs without make, too. SET comes from the
# environment of the recipe, so that the shell doesn't change what is quoted in it.
deploy: ## build and deploy the stack; SET='MirrorApply=true' changes only a parameter, ARCH the architecture
	@scripts/setup deploy
	@$(PINNED) ops/novi-bridge deploy --set-words "$${SET:-}" \
	  $(if $(ARCH),--set Architecture=$(ARCH)) $(ARGS)

parameters: ## prompt for each parameter and write it to SSM; ARGS='--only NAME' changes one
	@scripts/setup aws
	@$(OPERATE) parameters $(ARGS)

status: ## say how the stack is: version, schedule, last run, alarms, ledger
	@scripts/setup aws
	@$(OPERATE) status $(ARGS)

doctor: ## check everything that can be wrong with the stack, and say how to fix it; ARGS=--no-invoke is quick
	@scripts/setup aws
	@$(OPERATE) doctor $(ARGS)

probe: ## read how the live Novi and Mailman are, and print what to fix; writes nothing
	@scripts/setup aws
	@$(OPERATE) probe $(ARGS)

invoke-mirror: ## run the mirror once and print its report; ARGS=--dry-run, --show, '--force LIST' or --explain
	@scripts/setup aws
	@$(OPERATE) run $(ARGS)

stop: ## stop the mirror at once; ARGS=verify or all stops others
	@scripts/setup aws
	@$(OPERATE) stop $(ARGS)

start: ## start the mirror after a stop
	@scripts/setup aws
	@$(OPERATE) start $(ARGS)

remove: ## delete the stack, and say what stays; ARGS=--parameters also deletes the SSM parameters
	@scripts/setup aws
	@$(OPERATE) remove $(ARGS)
