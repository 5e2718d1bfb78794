# Two commands do everything on a machine that has python3 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m
BUNDLE := out/$(MODEL)-int4-rtn
PROMPT ?= What is the capital of France?

.PHONY: setup demo test lint types swift bench quality speed golden phone-class android-test android-apk clean

setup: $(VENV)/.installed-all

# uv installs what pip would, faster; it is told where pip's own index is.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	index=$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true); \
	UV_DEFAULT_INDEX=$${PIP_INDEX_URL:-$${index:-$${UV_DEFAULT_INDEX:-}}}; \
	if [ -n "$$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX; else unset UV_DEFAULT_INDEX; fi; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[$(1)]"
	touch $(2)
endef

$(VENV)/.installed-all: pyproject.toml constraints.txt
	$(call install,all,$@)

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call install,dev,$@)
	touch $(VENV)/.installed-all

demo: $(VENV)/.installed-all $(BUNDLE)/pocketlm.json
	$(BIN)/pocketlm verify $(BUNDLE)
	@echo
	@echo "> $(PROMPT)"
	$(BIN)/pocketlm chat $(BUNDLE) --prompt "$(PROMPT)"
	@echo
	@echo "These weights are rounded to nearest, which takes seconds. Better answers from a smaller file take minutes:"
	@echo "  $(BIN)/pocketlm export $(MODEL) -o out/$(MODEL)"

$(BUNDLE)/pocketlm.json: $(VENV)/.installed-all
	$(BIN)/pocketlm fetch $(MODEL)
	$(BIN)/pocketlm export $(MODEL) -o $(BUNDLE) --recipe int4-rtn --to onnx executorch coreml --overwrite >/dev/null

test: $(VENV)/.installed-dev lint types swift
	$(BIN)/python -m pytest
	@if command -v mvn >/dev/null && command -v java >/dev/null; then $(MAKE) --no-print-directory android-test; \
	else echo "SKIPPED: the tests of android_demo, which need a JDK (17) and Maven"; fi

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders only become the package `pocketlm` when they are installed, so types are checked on an installed copy.
types: $(VENV)/.installed-dev
	rm -rf .types build
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target .types .
	MYPYPATH=.types $(BIN)/mypy -p pocketlm
	rm -rf build

# ios_demo/ as far as that goes off a Mac; on a real bundle if `make demo` has made one.
swift:
	@if ! command -v swift >/dev/null; then \
		echo "There is no swift on the PATH: the Swift code of ios_demo/ is parsed, but not compiled and tested."; \
	else \
		set -ex; ios_demo/typecheck.sh; \
		POCKETLM_BUNDLE=$(if $(wildcard $(BUNDLE)/pocketlm.json),$(abspath $(BUNDLE))) swift test --package-path ios_demo; \
	fi

# The files that the tests of Python, Kotlin and Swift share.
golden: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m golden.make

quality: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/quality/run.py

speed: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/speed/run.py

# The app's tests on the JVM, with the real SmolLM2 on the real ONNX Runtime; its export is kept in out/.
ONNX_BUNDLE := out/$(MODEL)-onnx
$(ONNX_BUNDLE)/pocketlm.json: | $(VENV)/.installed-dev
	$(BIN)/pocketlm fetch $(MODEL)
	$(BIN)/pocketlm export $(MODEL) -o $(ONNX_BUNDLE) --recipe int4-rtn --to onnx --overwrite

android-test: $(ONNX_BUNDLE)/pocketlm.json
	cd android_demo && mvn -q -B test

# A signed APK in out/android; android_demo/scripts/apk.sh says what it needs.
android-apk:
	android_demo/scripts/apk.sh

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/export_cost.py

# The demo model on emulated ARM cores, in the memory of a 3 GB phone: minutes, and its times mean nothing.
PHONE_CLASS := --on arm64:cortex-a53 --on arm64:cortex-a76
phone-class: $(VENV)/.installed-all $(BUNDLE)/pocketlm.json
	$(BIN)/pocketlm device prepare arm64
	$(BIN)/pocketlm verify $(BUNDLE) --target onnx executorch --sequences 1 --device galaxy-a02s $(PHONE_CLASS)

clean:
	rm -rf $(VENV) .types out build *.egg-info
