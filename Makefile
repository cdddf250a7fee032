# causeway.platform: everything that people and CI run. "make help" lists it.
# PYTHON=/path/to/python3 chooses the interpreter of the environment (3.11, 3.12 or 3.13).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
RUN := python3 tools/run.py
PLAY = .venv/bin/ansible-playbook -i $(INVENTORY)
# The inventory wants its secrets even for the way down; this makes what is missing and changes nothing else.
SECRETS = .venv/bin/ansible-playbook -i localhost, playbooks/secrets_init.yml -e secrets_file=$(CURDIR)/.cache/$(1)/secrets.yml
INVENTORY ?= inventories/lab/platform.yml
S ?=

.PHONY: help
help: ## Show what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: demo
demo: ## From nothing to a platform that releases under traffic, on this machine
	@$(RUN) demo

.PHONY: demo-down
demo-down: runtime ## Remove every trace of the demo (keeps .venv and downloads in .cache)
	@$(call SECRETS,lab) >/dev/null
	@$(PLAY) playbooks/lab_down.yml

.PHONY: test
test: venv ## Every check; ends with "N passed, M failed"
	@$(RUN) test

.PHONY: lint
lint: venv ## ansible-lint, yamllint, ruff, mypy, shellcheck
	@$(RUN) lint

.PHONY: unit
unit: venv ## Unit tests
	@$(RUN) unit

.PHONY: sanity
sanity: venv ## ansible-test sanity
	@$(RUN) sanity

.PHONY: importer
importer: venv ## galaxy-importer on the built collection
	@$(RUN) importer

.PHONY: molecule
molecule: venv ## Molecule scenarios; S=NAME for one
	@$(RUN) molecule $(if $(S),--scenario $(S))

.PHONY: bench
bench: venv ## Benchmarks (see tests/benchmarks/README.md); the one of the gateway needs "make demo" before
	@tools/setup.sh packages bench
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; .venv/bin/python "$$file"; done

.PHONY: docs
docs: venv ## Reference pages of all plugins and roles into .cache/docs
	@rm -rf .cache/docs && mkdir -p .cache/docs
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/antsibull-docs collection --use-current --squash-hierarchy --fail-on-error --dest-dir .cache/docs causeway.platform
	@echo "pages are in .cache/docs"

.PHONY: changelog
changelog: venv ## CHANGELOG.rst from changelogs/fragments
	@tools/changelog.sh

# setup.sh looks for itself what is missing; nothing to do takes a moment.
.PHONY: runtime
runtime:
	@tools/setup.sh packages lab
	@tools/setup.sh venv .venv requirements.txt
	@tools/setup.sh link

.PHONY: venv
venv: ## Packages and Python environments for all of the above
	@tools/setup.sh packages lab test
	@tools/setup.sh venv .venv requirements-test.txt requirements.txt
	@tools/setup.sh venv .cache/venvs/tls requirements-tls.txt
	@tools/setup.sh link

.PHONY: clean
clean: ## Remove the labs, the environments and all caches of this checkout
	@if [ -x .venv/bin/ansible-playbook ]; then \
	  $(call SECRETS,lab) >/dev/null; $(call SECRETS,ci) >/dev/null; \
	  .venv/bin/ansible-playbook -i inventories/lab/platform.yml playbooks/lab_down.yml >/dev/null; \
	  .venv/bin/ansible-playbook -i molecule/platform/platform.yml playbooks/lab_down.yml >/dev/null; fi
	@rm -rf .cache 2>/dev/null || sudo rm -rf .cache # root's: images and what the lab left
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .ansible tests/output
