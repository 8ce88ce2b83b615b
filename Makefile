# `make help` lists what there is. A first `make demo` or `make test` makes .venv and installs into it; pip's own settings apply.

PYTHON ?= python3
VENV ?= .venv
# What restnet-bench is asked, and anything more to give to serve, bench, test or test-slow.
BUDGET ?= 200MFLOPs
# Minutes that a server in too little memory is watched for: the floor says 5, less keeps make bench in its 15 minutes.
SMALL_MEMORY_MINUTES ?= 1
ARGS ?=

BIN := $(VENV)/bin
DEMO_ENV := $(VENV)/.installed-demo
DEV_ENV := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow fuzz lint format serve bench bench-exporter bench-precision bench-controller bench-squeeze check-wheels check-ranges check-install check-image check-service check-compose check-arm64 docs docs-screenshots docs-pictures bundle clean

help: ## Show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sort | awk -F ':.*## ' '{ printf "%-15s %s\n", $$1, $$2 }'

demo: $(DEMO_ENV) ## Anchors trained on digits, stitched, served, asked with curl before and after a smaller budget
	PATH="$(abspath $(BIN)):$$PATH" sh examples/digits/demo.sh

SHARED_OUT := --numprocesses logical --dist loadfile --no-loadscope-reorder --cov-report=

# Tests share out the cores, but for those of the runtime that measure: they have the machine to themselves. 5: none was chosen.
test: $(DEV_ENV) ## The test suite with coverage; ARGS="-k name" chooses tests
	$(BIN)/python -m pytest tests/export -m "not slow" $(SHARED_OUT) --cov $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest tests --ignore tests/export -m "not slow and not alone" $(SHARED_OUT) --cov --cov-append $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest tests --ignore tests/export -m "alone and not slow" --cov --cov-append --cov-report=term:skip-covered --cov-report=xml $(ARGS) || [ $$? -eq 5 ]

test-slow: $(DEV_ENV) ## The tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

MINUTES ?= 5

fuzz: $(DEV_ENV) ## Hostile images, bodies and bundles against a real server for MINUTES=5, and counts of what came of it
	$(BIN)/python scripts/fuzz.py --minutes $(MINUTES) $(ARGS)

lint: $(DEV_ENV) ## ruff check, ruff format --check, mypy --strict, and pip-audit where it can be asked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/audit.py

format: $(DEV_ENV) ## Let ruff put imports and layout right
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

serve: $(DEMO_ENV) ## Serve the digits bundle that ships; ARGS="BUNDLE --budget 30ms --port 9000" for another
	$(BIN)/restnet-serve $(ARGS)

BENCHMARKS := route_latency executor_overhead route_memory switching peers churn batching startup small_memory compile_time thread_waiting thread_count sensing prediction
RESULTS := build/benchmarks/results

bench: $(DEV_ENV) ## Every measured claim in benchmarks/, and docs/benchmarks.md from the figures; about 20 minutes once the networks are made
	$(BIN)/restnet-bench --budget $(BUDGET) $(ARGS)
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/*.json
	@# One that fails does not keep the others from being measured and shown.
	@failed=; for name in $(BENCHMARKS); do echo "== $$name"; \
	  case $$name in small_memory) options="--minutes $(SMALL_MEMORY_MINUTES) --cold-minutes 0.5";; thread_waiting) options="--busy 1";; batching) options="--routes digits/cnn-l resnet18-50-32px/resnet18 resnet18-50-32px/resnet50 --clients 4 8 --seconds 0.3";; thread_count) options="--seconds 8";; route_latency) options="--seconds 3";; prediction) options="--rounds 6 --routes 6";; compile_time) options="--family resnet18-50 deit-ti-s deit-ti-s-b";; *) options=;; esac; \
	  $(BIN)/python benchmarks/$$name.py $$options --json $(RESULTS)/$$name.json || failed="$$failed $$name"; done; \
	$(BIN)/python benchmarks/render.py; if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

EXPORTED := build/benchmarks/exporter
TUNING := $(BIN)/python benchmarks/cifar_tuning.py --bf16

bench-exporter: $(DEV_ENV) ## The exporter's floors, on CIFAR-10 networks where RESTNET_SHARED has them, and docs/exporter.md; about four hours, less with a GPU
	@mkdir -p $(EXPORTED)
	$(BIN)/python benchmarks/export_cost.py --json $(EXPORTED)/01-cost.json
	$(BIN)/python benchmarks/cifar_family.py --samples 100 --json $(EXPORTED)/02-none.json
	$(TUNING) --modes stitch lora --stitch-kernel 3 --json $(EXPORTED)/03-down.json
	$(TUNING) --modes stitch --json $(EXPORTED)/03-down-1x1.json
	$(TUNING) --modes stitch --rule sn-net --stages 0 1 2 --stitch-kernel 3 --json $(EXPORTED)/04-up.json
	$(TUNING) --modes stitch --few 500 --json $(EXPORTED)/05-few.json
	$(TUNING) --modes stitch --few 500 --stitch-kernel 3 --json $(EXPORTED)/05-few-3x3.json
	$(TUNING) --modes stitch --set jpeg --stitch-kernel 3 --steps 400 --shift 2 --json $(EXPORTED)/08-jpeg-down.json
	$(TUNING) --modes stitch --set jpeg --rule sn-net --stages 0 1 2 --stitch-kernel 3 --json $(EXPORTED)/08-jpeg-up.json
	$(TUNING) --modes stitch --depths 20 32 44 56 --stitch-kernel 3 --steps 40 --json $(EXPORTED)/08-four.json
	$(BIN)/python benchmarks/batchnorm.py --json $(EXPORTED)/09-batchnorm.json
	$(BIN)/python benchmarks/resampling.py --json $(EXPORTED)/09-resampling.json
	$(TUNING) --modes full --set jpeg --stitch-kernel 3 --max-routes 16 --stitch-steps 200 --steps 1400 --shift 2 --json $(EXPORTED)/10-jpeg-full.json
	$(TUNING) --modes full --set jpeg --rule all --stitch-kernel 3 --max-routes 14 --steps 1100 --shift 2 --json $(EXPORTED)/10-jpeg-full-all.json
	$(TUNING) --modes lora --set jpeg --rule all --stitch-kernel 3 --max-routes 40 --shift 2 --json $(EXPORTED)/10-jpeg-lora.json
	$(TUNING) --modes full --depths 20 32 44 56 --stitch-kernel 3 --ends 2 --max-routes 32 --stitch-steps 60 --steps 1600 --shift 2 --json $(EXPORTED)/11-four-full.json
	$(TUNING) --modes lora --depths 20 32 44 56 --rule all --max-routes 40 --stitch-kernel 3 --steps 60 --json $(EXPORTED)/11-four-lora.json
	$(BIN)/python benchmarks/exporter_page.py $(EXPORTED)/*.json

INT8 := build/benchmarks/int8
CIFAR := build/benchmarks/cifar

bench-precision: $(DEV_ENV) ## Int8: latency, accuracy, size and the joint front, and docs/int8.md; an hour and a half
	@mkdir -p $(INT8)
	$(BIN)/python benchmarks/int8_latency.py --rounds 30 --json $(INT8)/01-latency.json
	$(BIN)/python benchmarks/int8_kinds.py --json $(INT8)/01b-kinds.json
	$(BIN)/python benchmarks/int8_accuracy.py --json $(INT8)/02-untuned.json
	$(TUNING) --modes full --steps 1400 --shift 2 --teacher 44
	$(BIN)/python benchmarks/requantise.py $(CIFAR)/20-56-lossless-restnet/full $(CIFAR)/tuned-int8
	$(BIN)/python benchmarks/int8_accuracy.py --bundles $(CIFAR)/tuned-int8 --rounds 100 --picture docs/int8.png --json $(INT8)/03-tuned.json
	$(BIN)/python benchmarks/int8_cause.py $(CIFAR)/jpeg-int8 --json $(INT8)/04-cause-untuned.json
	$(BIN)/python benchmarks/int8_cause.py $(CIFAR)/tuned-int8 --json $(INT8)/05-cause-tuned.json
	$(BIN)/python benchmarks/saturation.py --processors --json $(INT8)/06-saturation.json
	$(BIN)/python benchmarks/int8_page.py $(INT8)/*.json

bench-controller: $(DEV_ENV) ## The controller on made traces, beside what one would do without it, and docs/controller.md; minutes
	$(BIN)/python benchmarks/decision.py --json $(RESULTS)/decision.json
	$(BIN)/python benchmarks/replay.py --page docs/controller.md --picture docs/replay.png --json build/benchmarks/replay.json

bench-squeeze: $(DEV_ENV) ## A served process really squeezed in its own control group, and docs/squeeze.md; ten minutes, as root
	$(BIN)/python benchmarks/squeeze.py --threads 2 --rounds 3 --page docs/squeeze.md --picture docs/squeeze.png --json $(RESULTS)/squeeze.json

docs: $(DEV_ENV) ## The documentation as a site in build/site; links within it are checked, those to other sites are listed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

docs-screenshots: docs ## Every page of the site in Chromium, wide and narrow, in build/site-pictures, and docs/site.png
	$(BIN)/python scripts/site/screenshots.py
	$(BIN)/python scripts/site/screenshots.py --sheet docs/site.png

docs-pictures: $(DEV_ENV) ## The pictures of the explanation pages, drawn anew
	$(BIN)/python scripts/site/pictures.py

# What touches every dependency: the compiler, sessions, bodies, both HTTP interfaces, metrics, images, sensors, the commands.
ENDS_TESTS := $(addprefix tests/runtime/test_,bundle.py compile.py packing.py executor.py engine.py runtime.py api.py v2.py metrics.py preprocess.py sensors.py catalog.py server.py notify.py facts.py)
PYTHONS ?= python3.10 python3.11 python3.12 python3.13

check-wheels: $(DEV_ENV) ## Is there a wheel of everything a device installs, for four Pythons and two processors, at both ends of the ranges?
	$(BIN)/python scripts/wheels.py --ends lowest pinned newest $(ARGS)

check-ranges: ## Install both ends of the ranges for each of PYTHONS that is here, and run tests that touch every dependency
	@failed=; for python in $(PYTHONS); do command -v $$python >/dev/null && $$python -c '' 2>/dev/null || { echo "$$python is not here"; continue; }; for end in lowest newest; do \
	  PYTHON=$$python END=$$end TESTS="$(ENDS_TESTS)" scripts/check-device-install $(ARGS) || failed="$$failed $$python/$$end"; done; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

check-install: ## The device install from a wheel of the sdist: its size and time, the server, the runtime's tests
	scripts/check-device-install $(ARGS)

check-image: ## Build the Dockerfile without an engine, run what was built read-only, and ask it; as root on Debian. ARGS=--export: both targets
	scripts/check-dockerfile $(ARGS)

check-service: ## Boot a Debian with the systemd unit, and let the server hang, die, stop and come back; as root on Debian
	scripts/check-service

check-arm64: ## Boot emulated 64-bit ARM machines with pages of 4 and of 16 KB, install, serve, squeeze and test there; an hour or two, as root on Debian
	scripts/check-arm64 $(ARGS)

check-compose: $(DEV_ENV) ## The files of deploy/compose, with a real server and a real Prometheus
	$(BIN)/python scripts/compose_check.py

bundle: $(DEMO_ENV) ## Make the digits bundle that ships anew
	PATH="$(abspath $(BIN)):$$PATH" sh examples/digits/bundle.sh

clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* coverage.xml
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The demo alone needs less, and its four minutes include the installation: what it imports is compiled then, the rest never.
$(DEMO_ENV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what the demo needs into $(VENV) ..."
	@$(INSTALL) -e '.[export]'
	@touch $@

$(DEV_ENV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing everything into $(VENV) ..."
	@$(INSTALL) -e '.[export,timm,dev,docs]'
	@# All of it at once here: compiled under pytest, a dependency's own SyntaxWarning would be an error.
	@$(BIN)/python -W ignore -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $(DEMO_ENV) $@
