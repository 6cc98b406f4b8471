# Everything needed to open the course or to test it: one command each, safe to repeat.
.DEFAULT_GOAL := help
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
RECIPE := pyproject.toml constraints.txt
STAMP_LAB := $(VENV)/.labkit-lab
STAMP_TEST := $(VENV)/.labkit-test
STAMP_COLAB := $(VENV)/.labkit-colab
STAMP_PEERS := $(VENV)/.labkit-peers
# Where transformers finds torchao it imports it at once, seconds long and not in silence: it lies apart, for some tests.
PEERS := torchao==0.18.0
# What Colab ships of widgets, beside the environment's own: tests put this folder in front of it.
COLAB_WIDGETS := ipywidgets==7.7.1 anywidget==0.9.21 ipython_genutils==0.2.0
OLD_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 11))
# Found only when an environment must be made: the first Python that is new enough.
FIND_PYTHON = for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  if "$$python" -c '$(OLD_ENOUGH)' >/dev/null 2>&1; then echo "$$python"; exit 0; fi; done

.PHONY: help lab test setup-lab setup-test system format fuzz test-store release clean

help: ## show this list
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-13s%s\n", $$1, $$2}'

lab: setup-lab ## set everything up and open the course in JupyterLab
	@echo "→ opening notebooks/00_start.ipynb in JupyterLab (Ctrl-C here closes it)"
	@$(BIN)/labkit lab 00

# What a worker gets as a whole, and in which order: tests/conftest.py.
test: setup-test system ## set everything up, then lint and run all tests
	@echo "→ ruff: style and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "→ are the generated notebooks up to date?"
	@$(BIN)/labkit release --check
	@echo "→ tests, $(JOBS) at a time"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope
	@echo "✓ everything passes"

setup-lab: $(STAMP_LAB) ## only make the environment for the notebooks
	@echo "✓ ready; for the labkit command: source $(BIN)/activate"

setup-test: $(STAMP_TEST) $(STAMP_COLAB) $(STAMP_PEERS) ## only make the environment for the tests

$(BIN)/python:
	@if [ ! -w . ]; then echo "✗ $(CURDIR) cannot be written; clone the course into a folder of yours"; exit 2; fi
	@if [ -n "$(PYTHON)" ] && ! "$(PYTHON)" -c '$(OLD_ENOUGH)' >/dev/null 2>&1; then \
	  echo "✗ PYTHON=$(PYTHON) is no Python 3.11 or newer with the venv module"; exit 2; fi
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
	  echo "✗ No Python 3.11 or newer with the venv module was found. Install one (on Debian: apt install python3 python3-venv),"; \
	  echo "  or name it: make lab PYTHON=/path/to/python3.12"; exit 2; fi; \
	echo "→ making the environment $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv "$(VENV)" || { \
	  rm -rf "$(VENV)"; \
	  echo "✗ $$python could not make an environment (on Debian: apt install python3-venv)"; exit 2; }

$(STAMP_LAB): $(RECIPE) | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "✗ $(VENV) is not whole; remove it with: make clean"; exit 2; }
	@echo "→ installing labkit and JupyterLab into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab]'
	@touch $@

$(STAMP_TEST): $(RECIPE) | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "✗ $(VENV) is not whole; remove it with: make clean"; exit 2; }
	@echo "→ installing labkit and what its tests need into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(STAMP_LAB)

$(STAMP_COLAB): Makefile | $(STAMP_TEST)
	@echo "→ laying out the widgets that Colab ships, for one test"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
	  --target $(VENV)/colab-widgets $(COLAB_WIDGETS)
	@touch $@

$(STAMP_PEERS): Makefile | $(STAMP_TEST)
	@echo "→ laying out torchao, for the tests that compare with it"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
	  --target $(VENV)/peers $(PEERS)
	@touch $@

# Programs that pip cannot bring. Without them some tests are skipped, unless LABKIT_REQUIRE names them.
system: ## install Chromium, bubblewrap and Prometheus where possible, else say which tests are skipped
	@missing=""; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || missing="$$missing chromium"; \
	command -v bwrap >/dev/null || missing="$$missing bubblewrap"; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	command -v amtool >/dev/null || missing="$$missing prometheus-alertmanager"; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ]; then root=""; \
	elif sudo -n true >/dev/null 2>&1; then root="sudo -n"; else root="no"; fi; \
	if command -v apt-get >/dev/null && [ "$$root" != no ]; then \
	  echo "→ installing with apt-get:$$missing"; \
	  $$root apt-get update -qq || true; \
	  $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null && exit 0; \
	  echo "  apt-get could not install them"; \
	fi; \
	case "$$missing" in *chromium*) echo "! no Chromium: tests marked 'browser' will be skipped (install chromium)";; esac; \
	case "$$missing" in *bubblewrap*) echo "! no bubblewrap: tests marked 'sandbox' will be skipped (install bubblewrap)";; esac; \
	case "$$missing" in *prometheus*) \
	  echo "! no Prometheus: tests marked 'prometheus' will be skipped (install prometheus, prometheus-alertmanager)";; esac

format: setup-test ## mend style and format where ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

fuzz: setup-test ## the server under 5,000 requests that schemathesis invents
	@LABKIT_FUZZ=$${LABKIT_FUZZ:-5000} $(BIN)/python -m pytest tests/serve/test_server_fuzz.py

STORE_TESTS := -m pytest -p no:xdist -k real tests/serve/test_registry.py tests/serve/test_registry_race.py tests/serve/test_registry_damage.py
test-store: setup-test ## the registry's tests on the S3 store of LABKIT_S3_ENDPOINT, or on Ceph's if it is installed
	@if [ -n "$$LABKIT_S3_ENDPOINT" ]; then $(BIN)/python $(STORE_TESTS); \
	else $(BIN)/python tests/serve/radosgw.py -- $(BIN)/python $(STORE_TESTS); fi

release: setup-test ## make the student notebooks anew from their masters in solutions/
	@$(BIN)/labkit release

clean: ## remove the environment and everything that was built or run (never your notebooks or progress)
	@rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	@echo "✓ removed $(VENV), build, dist, runs and caches"
