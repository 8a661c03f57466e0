# Two commands do everything on a fresh machine:
#   make demo   the main job on this machine alone: no AWS account, nothing to configure
#   make test   every check there is, slow ones apart
# Both set up a virtual environment in .venv first; an installed uv is used, none is needed.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# The other versions of Python that we say we run on, for test-pythons.
PYTHONS ?= python3.12 python3.13
PYTEST ?= $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-pythons lint bench profile wheel lambda-zip clean \
	.lint-style .lint-mypy .lint-pyright .test-servers

help:
	@sed -n '2,4p' Makefile | sed 's/^# *//'
	@echo "  also: make lint, test-slow, test-pythons, bench, profile, wheel, lambda-zip, clean"

$(VENV)/.venv-made:
	@sh scripts/make-venv "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.serve-installed: $(VENV)/.venv-made pyproject.toml
	@echo "Installing into $(VENV); the first time takes half a minute."
	@sh scripts/install "$(VENV)" "-e .[serve]"
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.venv-made pyproject.toml
	@echo "Installing into $(VENV), tools for development included; the first time takes a while."
	@sh scripts/install "$(VENV)" "-e .[serve]" --group dev
	@touch $@ $(VENV)/.serve-installed

demo: $(VENV)/.serve-installed
	@$(BIN)/bedrock-proxy demo $(DEMO)

# Two at a time, for each takes half a minute on its own.
lint: $(VENV)/.dev-installed
	@$(MAKE) --no-print-directory -j2 .lint-style .lint-mypy .lint-pyright

.lint-style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.lint-mypy:
	$(BIN)/mypy

.lint-pyright:
	$(BIN)/pyright

.test-servers:
	@[ "$(CI)" != true ] || sh scripts/test-servers

test: $(VENV)/.dev-installed
	@$(MAKE) --no-print-directory -j2 .lint-style .lint-mypy .lint-pyright .test-servers
	@sh scripts/run-tests "$(PYTEST)" $(ARGS)

test-slow: $(VENV)/.dev-installed
	$(PYTEST) -m slow -o timeout=7200 $(ARGS)

# An environment of its own for each version: .venv-python3.12 and so on.
test-pythons:
	@for python in $(PYTHONS); do \
		venv=.venv-$$(basename $$python); \
		$(MAKE) --no-print-directory VENV=$$venv PYTHON=$$python $$venv/.dev-installed && \
		$$venv/bin/python -m pytest -m "not slow" -p no:cacheprovider tests/core tests/contracts tests/hosts \
			tests/adapters $(ARGS) || exit 1; \
	done

bench: $(VENV)/.dev-installed
	$(BIN)/python -m benchmarks $(ARGS)

profile: $(VENV)/.dev-installed
	$(BIN)/python -m benchmarks.profile $(ARGS)

wheel: $(VENV)/.dev-installed
	$(BIN)/python -m build --wheel --outdir dist

lambda-zip: $(VENV)/.dev-installed
	$(BIN)/python scripts/lambda-zip

clean:
	rm -rf $(VENV) dist build
