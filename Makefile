# Everything runs from .venv, which `make install` makes once and again when a pin or setup.py changes;
# `make test-oldest` from .venv-oldest, with the oldest versions of TensorFlow and Keras.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all test-oldest browser bazel lint format docs dist benchmarks clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_OLDEST := .venv-oldest/.installed
# Tests of what uses internals of Keras and TensorFlow; all tests twice would take too long.
TESTS_OLDEST := $(patsubst %,tests/%_test.py,callbacks/checkpoint callbacks/files internals/tf_second_derivatives search/fingerprint \
	internals/tf_forward_mode hyper_optimizer internals/keras differentiation/layer_check functional/optimizer public_api \
	export/snippet functional/model differentiation/jacobian_products training differentiation/forward \
	internals/tf_vectorization versions)
# A test of every folder: all of them take as long as `make test` does.
TESTS_BAZEL := $(patsubst %,//tests%_test,:build_files :layering :schedules :versions /benchmarks:outer_rules \
	/callbacks:pictures /configs:configs /data:batches /differentiation:divergence /docs:site /examples:own_model \
	/export:python_code /functional:rebuild /internals:tf_products /outer:contract /search:fingerprint /trainers:workdirs)
SELENIUM := selenium==4.51.0
BUILDIFIER := @bazel/buildifier@8.2.1
PIP_INSTALL = $*/bin/python -u -m pip --disable-pip-version-check install --progress-bar off
# One line that rewrites itself with what pip is doing; its errors go to the terminal as they are.
PROGRESS := awk '/^ *(Collecting|Downloading|Using|Building|Installing)/ \
	{ printf "\r\033[K%.78s", $$0; fflush() } END { print "\r\033[K" }'

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with everything in requirements.lock and this package.

$(INSTALLED): requirements.lock
$(INSTALLED_OLDEST): requirements-oldest.lock

$(INSTALLED) $(INSTALLED_OLDEST): %/.installed: setup.py pyproject.toml
	@echo "Making $* (TensorFlow is large: a few minutes the first time)"
	@$(PYTHON) -m venv $*
	@$(PIP_INSTALL) -r $(filter %.lock,$^) | $(PROGRESS)
	@$(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "Installed in $*"

quickstart: install ## Learn schedules for a small network on digits, then train with them.
	@run=runs/digits; n=1; \
	while [ -e $$run ] || [ -e $$run-train ]; do n=$$((n + 1)); run=runs/digits-$$n; done; \
	show() { echo; echo "\$$ $$*"; "$$@"; }; \
	show $(BIN)/python -m trainers.search --config=configs/digits.py --workdir=$$run; \
	show $(BIN)/python -m trainers.train --config=configs/digits.py \
		--schedules=$$run/schedules.json --workdir=$$run-train; \
	echo; echo "To see it all in TensorBoard, type:"; \
	echo "  $(BIN)/tensorboard --logdir $$run"

test: install ## Run the tests, a few cases of each long sweep.
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: install ## Run all tests, with all cases of the long sweeps.
	@$(BIN)/python -m pytest -n 2 --dist worksteal --sweeps

test-oldest: $(INSTALLED_OLDEST) ## Run tests that depend on versions with the oldest TensorFlow and Keras.
	@.venv-oldest/bin/python -m pytest -n 2 --dist worksteal $(TESTS_OLDEST)

browser: install ## Look at TensorBoard and reports in a real browser: needs chromium and chromium-driver.
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet $(SELENIUM)
	@$(BIN)/python -m pytest tests/browser_test.py --screenshots=runs/screenshots
	@echo "Screenshots are in runs/screenshots"

bazel: install ## Build everything with Bazel, and run a test of every folder; CONTRIBUTING.md says what it needs.
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	bazel build //...; \
	bazel test $(TESTS_BAZEL)
	@npx --yes $(BUILDIFIER) -mode=check -lint=warn $$(git ls-files | grep -E '(^|/)(BUILD|WORKSPACE)$$')

lint: install ## Check style, formatting and the types of what is public.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install ## Fix what ruff can fix.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: install ## Build the documentation in site/, with warnings as errors.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: install ## Build the sdist and the wheel in dist/.
	@$(BIN)/python -m build --no-isolation

benchmarks: install ## Measure all that docs/benchmarks.md reports, with PyTorch and JAX (an hour).
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet -r benchmarks/requirements.txt
	@$(BIN)/python -m benchmarks.run

clean: ## Remove caches and build outputs; .venv, .venv-oldest and runs/ stay.
	@rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
