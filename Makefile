# One entry point. The first call sets up .venv from the locked requirements; later ones are quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo cluster-demo test unit-test cluster-test check bench cluster-bench docs lock

$(VENV)/.bootstrap: requirements/bootstrap.txt
	$(PYTHON) -m venv $(VENV)
	PIP_FIND_LINKS= $(BIN)/python -m pip install --quiet --require-hashes -r requirements/bootstrap.txt
	touch $@

$(VENV)/.run: requirements/controller.txt $(VENV)/.bootstrap pyproject.toml runtime/pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/controller.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . -e runtime
	touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.run
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/test.txt
	touch $@

demo: $(VENV)/.run
	$(BIN)/myelin demo

cluster-demo: $(VENV)/.test
	$(BIN)/python -m tests.cluster.demo

test: unit-test cluster-test

unit-test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --ignore=tests/cluster

# In processes of their own: each moves into the network of a Kubernetes node of its own, or says what is missing for one.
# They mostly wait, so two run side by side; what the first one said is shown when both have ended.
cluster-test: $(VENV)/.test
	@mkdir -p .cache
	@$(BIN)/python -m pytest -n 0 --durations=10 --ignore=tests/cluster/test_story.py tests/cluster > .cache/cluster-test.log 2>&1 & \
	first=$$!; \
	$(BIN)/python -m pytest -n 0 --durations=10 tests/cluster/test_story.py; second=$$?; \
	wait $$first; first=$$?; cat .cache/cluster-test.log; \
	exit $$((first > second ? first : second))

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

cluster-bench: $(VENV)/.test
	$(BIN)/python -m tests.cluster.bench

bench: $(VENV)/.run
	$(BIN)/python benchmarks/run.py

docs: $(VENV)/.run
	$(BIN)/python docs/reference/generate.py

lock: $(VENV)/.bootstrap
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements/controller.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --group test -o requirements/test.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header runtime/pyproject.toml -o runtime/myelin/requirements.txt
	printf "uv\nhatchling\neditables\n" | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header - -o requirements/bootstrap.txt
