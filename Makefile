# make demo | test | chaos | lint | clean. Each first makes `.venv` when it is missing or pyproject.toml has changed.
.DELETE_ON_ERROR:
.PHONY: demo test chaos lint clean

BIN := .venv/bin
# Tests and jobs start many processes, and none has to compile what another one has compiled.
export PYTHONDONTWRITEBYTECODE :=
STAMP := .venv/.installed
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)

demo: $(STAMP)
	$(BIN)/vsr1 demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --durations=25

# What kills processes or times engines: `make test` leaves it out, and `.ci/run` what takes many minutes of it.
KILLS := chaos or measured or soak
chaos: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 -m '$(KILLS)' --durations=10

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/budget.py

$(STAMP): pyproject.toml
	@$(PYTHON) .ci/preflight.py
	@echo "vsr1: installing into .venv with $(PYTHON): about 4 GiB, 2 to 5 minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[cpu,dev]" || { \
	  echo "vsr1: the installation failed; if torch==2.13.0+cpu was not found, give pip the CPU wheels of torch: CONTRIBUTING.md, Setup" >&2; \
	  exit 1; }
	@$(BIN)/python -c "from vsr1.compat import prepare_environment; prepare_environment()"
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
