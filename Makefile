# The words people expect. `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE ?= 1
export MLFLOW_PORT PREFECT_PORT PAGE_PORT RUNS
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo real up down status test test-slow lint format bench repro screenshots docs audit vulnerabilities clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# pip, not uv: torch's CPU build comes from where pip is configured to look.
$(VENV)/.installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "OSPO needs Python 3.11 or later; name one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip check
	@touch $@

install: $(VENV)/.installed ## Make the virtual environment from constraints.txt

demo: install ## Run the main job on both datasets; ESCI_RAW=DIR HM_RAW=DIR take your own raw files; REAL=DIR evaluates on DIR/esci, DIR/hm too
ifneq ($(origin ESCI_RAW),undefined)
	$(BIN)/ospo config set 'data.esci.raw=$(or $(ESCI_RAW),data/sample/esci)'
endif
ifneq ($(origin HM_RAW),undefined)
	$(BIN)/ospo config set 'data.hm.raw=$(or $(HM_RAW),data/sample/hm)'
endif
	$(BIN)/python -m flows.demo $(if $(REAL),--real '$(REAL)')

real: install ## Train SmolLM2-135M on real rows by the recipe: HM_RAW=DIR or ESCI_RAW=DIR, SEEDS=0,1,2, NAME= (docs/howto/data.md)
	@$(if $(HM_RAW)$(ESCI_RAW),,echo "name a folder of official files: make real HM_RAW=DIR, or ESCI_RAW=DIR" >&2; exit 2)
	$(if $(HM_RAW),$(BIN)/python -m flows.recipe --format hm --raw '$(HM_RAW)' --seeds $(or $(SEEDS),0) $(if $(NAME),--name '$(NAME)'))
	$(if $(ESCI_RAW),$(BIN)/python -m flows.recipe --format esci --raw '$(ESCI_RAW)' --seeds $(or $(SEEDS),0) $(if $(NAME),--name '$(NAME)'))

up: install ## Start the page to try a query, MLflow, Prefect and a worker here, deploy prefect.yaml; PAGE_PORT=, MLFLOW_PORT=, PREFECT_PORT=, RUNS=
	@$(BIN)/python -m servers up

down: install ## Stop what `make up` started
	@$(BIN)/python -m servers down

status: install ## Say which servers run
	@$(BIN)/python -m servers status

repro: install ## Rebuild all data from the raw files (dvc repro)
	$(BIN)/dvc repro

test: install ## Run the tests (minutes)
	$(BIN)/pytest

test-slow: install ## Run the slow tests too
	$(BIN)/pytest -m 'not gpu'

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Run every benchmark in its quick form
	for name in credit estimators step evaluation prepare index; do $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

screenshots: install ## Photograph the page over what is here, light, dark and as a phone shows it, in reports/screenshots
	$(BIN)/python tests/screenshots.py reports/screenshots

docs: install ## Build the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

audit: install ## Look for secrets, and list every installed package in sbom.json (CycloneDX); works offline
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --baseline .secrets.baseline
	$(BIN)/cyclonedx-py environment --validate --output-reproducible -o sbom.json $(BIN)/python

vulnerabilities: install ## Ask PyPI for known vulnerabilities of the pinned packages
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off

clean: ## Remove everything that can be rebuilt, but not your raw files nor .venv
	rm -rf data runs reports mlflow.db* mlartifacts .prefect .run .cache .benchmarks site .pytest_cache .mypy_cache .ruff_cache
