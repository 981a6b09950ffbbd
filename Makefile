# make setup   .venv with the locked dependencies, this package, generated code
# make test    everything a change must pass
# make rigs    longer runs with faults, as continuous integration does
# make demo    the guided demonstration on a real three-process cluster
# make cluster a three-process cluster that keeps running
#
# Nothing is done twice: .venv/.installed and .venv/.generated stand for what was made from what.

PYTHON ?= python3
PY := .venv/bin/python
PROTOS := $(shell find proto -name '*.proto' | LC_ALL=C sort)
TESTS := $(wildcard tests/tidy tests/unit tests/scenarios tests/conformance tests/simulation tests/integration)
TYPED := cluster node clients/python

.DEFAULT_GOAL := setup
.PHONY: setup proto generate lint format test rigs demo cluster lock clean

setup: .venv/.installed .venv/.generated

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv

# hatchling and editables are in the lock, so that the second line needs no network.
.venv/.installed: requirements.lock pyproject.toml | $(PY)
	cmp -s requirements.lock $@ || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	cp requirements.lock $@

proto: .venv/.generated

# The list of protos is an input too: one that is deleted must take its generated code with it.
.venv/.protos: FORCE | $(PY)
	@echo '$(PROTOS)' | cmp -s - $@ || echo '$(PROTOS)' > $@
FORCE:

.venv/.generated: .venv/.installed .venv/.protos $(PROTOS) Makefile
	rm -rf .venv/generated
	$(MAKE) --no-print-directory generate OUT=.venv/generated
	for room in clients/python/quorumq cluster node; do \
	  rm -rf $$room/v1; \
	  if [ -d .venv/generated/$$room/v1 ]; then mkdir -p $$room && mv .venv/generated/$$room/v1 $$room/v1; fi; \
	done
	rm -rf .venv/generated
	touch $@

# Generates into the tree $(OUT): quorumq/v1 belongs to the client library, the rest to its own room.
OUT ?= .
GENERATE = $(PY) -m grpc_tools.protoc -I proto
generate:
	@mkdir -p $(OUT)/clients/python
	@$(GENERATE) $(foreach kind,python pyi grpc_python,--$(kind)_out=$(OUT)/clients/python) $(filter proto/quorumq/%,$(PROTOS))
	@internal='$(filter-out proto/quorumq/%,$(PROTOS))'; [ -z "$$internal" ] || \
	  $(GENERATE) $(foreach kind,python pyi grpc_python,--$(kind)_out=$(OUT)) $$internal
	@for room in clients/python/quorumq cluster node; do \
	  [ ! -d $(OUT)/$$room/v1 ] || echo '"""Generated from proto/ by `make proto`."""' > $(OUT)/$$room/v1/__init__.py; \
	done

lint: setup
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --quiet --check .
	.venv/bin/mypy --strict $(TYPED)
	cd proto && ../.venv/bin/buf lint
	@# What was released stays compatible: compare with the last release, if there is one here.
	@release=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null) || exit 0; \
	  cd proto && ../.venv/bin/buf breaking --against "../.git#tag=$$release,subdir=proto"

format: setup
	.venv/bin/ruff check --quiet --fix .
	.venv/bin/ruff format --quiet .

test: setup lint
	$(PY) -m pytest -q $(TESTS)

# Longer than `make test`: faults on real processes, many simulated seeds (tests/rigs).
rigs: setup
	$(PY) -m pytest -q tests/rigs

demo: setup
	$(PY) -m node.demo

cluster: setup
	$(PY) -m node.local_cluster

# Renews requirements.lock from pyproject.toml; the tool lives in an environment of its own.
lock:
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check pip-tools
	CUSTOM_COMPILE_COMMAND='make lock' .venv/lock/bin/pip-compile --quiet --upgrade --extra dev --generate-hashes \
	  --strip-extras --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv clients/python/quorumq/v1 cluster/v1 node/v1 .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
