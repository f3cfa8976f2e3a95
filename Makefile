PYTHON ?= python3
BIN := .venv/bin
STORE ?= sqlite:///$(abspath mlflow.db)
PORT ?= 5000
DAGSTER_PORT ?= 3000

.DEFAULT_GOAL := demo
.PHONY: demo test test-slow lint ui dagster results bench docs clean

.venv/.ok: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name yours: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv (about 2 GB, a few minutes)"
	@start=$$(date +%s); \
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -c constraints.txt -e '.[dev]' && touch $@ || exit 1; \
	took=$$(( $$(date +%s) - start )); echo "install took $$((took / 60)) min $$((took % 60)) s"

demo: .venv/.ok  ## ingest, mine, fit and evaluate on the embedded world
	@start=$$(date +%s); \
	$(BIN)/kedro run || exit 1; \
	took=$$(( $$(date +%s) - start )); echo "demo took $$((took / 60)) min $$((took % 60)) s after the install"

lint: .venv/.ok  ## ruff, mypy, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy src
	$(BIN)/lint-imports

test: lint  ## lint, then the test suite, a process of one thread a core
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal

test-slow: .venv/.ok  ## the long fault and soak suites
	$(BIN)/pytest -m "slow and not gpu"

ui: .venv/.ok  ## MLflow on http://127.0.0.1:$(PORT)
	@echo "runs: http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	@MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow server --backend-store-uri "$(STORE)" --host 127.0.0.1 --port $(PORT) --workers 1

# Dagster needs protobuf below 7, dagster-mlflow pandas below 3.
.venv/.dagster: .venv/.ok
	@grep -vE '^(pandas|protobuf)==' constraints.txt | $(BIN)/pip install -q -c /dev/stdin -e '.[orchestration]'
	@touch $@

dagster: .venv/.dagster  ## Dagster's UI and daemon on http://127.0.0.1:$(DAGSTER_PORT)
	@echo "Dagster: http://127.0.0.1:$(DAGSTER_PORT)"
	@DAGSTER_HOME="$(abspath .dagster)" $(BIN)/dagster dev -m softrepa_pipeline.orchestration -h 127.0.0.1 -p $(DAGSTER_PORT)

results: .venv/.ok  ## the full evaluation of every family, into docs/results.md
	@for family in sd15 sdxl sd3; do $(BIN)/kedro run --pipelines results --params family=$$family || exit 1; done

bench: .venv/.ok  ## speed and memory, side by side, into benchmarks/results.json
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py

docs: .venv/.ok  ## the documentation site: build/site/index.html (`make test` checks README's commands, the site and the notebooks)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

clean:  ## remove the caches and what the pipeline wrote (data/01_raw, committed data, .venv and MLflow's store stay)
	@for folder in $(wildcard data/0[2-8]_*); do git clean -fdXq "$$folder"; done
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build src/*.egg-info
