# The two commands of the README, `make demo` and `make test`, and what CI runs besides.
# Each works alone on a machine with Python >= 3.10 and a C++20 compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
BUILD := build/cpp

.PHONY: demo test test-python test-cpp test-consumer test-aarch64 sanitize lint wheel bench clean doctest

demo: $(VENV)/.installed
	$(BIN)/llava-fa demo --example examples/tiny_lmm

test: test-cpp test-consumer test-python

# Build requirements first, so that the package builds once against the tested versions; editable
# would hide an install step that a user's `pip install .` needs.
$(VENV)/.tools: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt \
	  scikit-build-core nanobind cmeel-eigen cmake ninja torch
	touch $@

SOURCES := $(shell find cpp bindings cmake python/llava_fa -name '*.[ch]pp' -o -name '*.cu*' -o -name '*.cmake' -o -name '*.py' -o -name CMakeLists.txt)

$(VENV)/.installed: $(VENV)/.tools $(SOURCES) CMakeLists.txt VERSION
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation .
	touch $@

$(VENV)/.test-tools: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --group test --group dev
	touch $@

# The C++ unit tests need the doctest header; it is in every distribution, not on PyPI.
doctest:
	@echo '#include <doctest/doctest.h>' | $(or $(CXX),c++) -x c++ -fsyntax-only - 2>/dev/null || \
	  { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
	    apt-get -qq update && apt-get -qq install -y doctest-dev >/dev/null; } || \
	  { echo "error: doctest/doctest.h not found: install doctest (Debian: apt install doctest-dev)"; \
	    exit 1; }

$(BUILD)/build.ninja: $(VENV)/.tools CMakeLists.txt
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B $(BUILD) -G Ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DLLAVA_FA_BUILD_TESTS=ON \
	  -DLLAVA_FA_WARNINGS_AS_ERRORS=ON $(CMAKE_ARGS)

test-cpp: doctest $(BUILD)/build.ninja
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build $(BUILD)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/ctest --test-dir $(BUILD) --output-on-failure

# The C++ tests under the sanitizers, about eight minutes on two cores. The thread sanitizer sees one
# variant: what threads share is the same in all. Tests of variants that this processor cannot run
# are skipped.
FAST_VARIANT := $(if $(filter x86_64,$(shell uname -m)),x86-64-v3,baseline)
WIDE_VARIANTS := $(if $(filter x86_64,$(shell uname -m)),x86-64-v4;x86-64-v4-gfni,)
sanitize: doctest $(VENV)/.tools
	$(call sanitized,address,-DLLAVA_FA_SANITIZE="address;undefined" \
	  -DLLAVA_FA_CPU_VARIANTS="baseline;$(FAST_VARIANT);$(WIDE_VARIANTS)")
	$(call sanitized,thread,-DLLAVA_FA_SANITIZE=thread -DLLAVA_FA_CPU_VARIANTS=$(FAST_VARIANT))

define sanitized
PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B build/$(1) -G Ninja \
  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DLLAVA_FA_BUILD_TESTS=ON $(2)
PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build build/$(1)
PATH="$(abspath $(BIN)):$$PATH" $(BIN)/ctest --test-dir build/$(1) --output-on-failure
endef

# The kernels of 64-bit Arm: cross-compiled, their tests emulated.
test-aarch64: doctest $(VENV)/.tools
	@{ command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null || \
	  { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
	    apt-get -qq update && apt-get -qq install -y g++-aarch64-linux-gnu qemu-user >/dev/null; } || \
	  { echo "error: aarch64-linux-gnu-g++ or qemu-aarch64 not found (Debian: apt install" \
	    "g++-aarch64-linux-gnu qemu-user)"; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B build/aarch64 -G Ninja \
	  -DCMAKE_TOOLCHAIN_FILE=$(abspath cmake/aarch64-linux.cmake) -DLLAVA_FA_CUDA=OFF \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DLLAVA_FA_BUILD_TESTS=ON \
	  -DLLAVA_FA_WARNINGS_AS_ERRORS=ON
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build build/aarch64
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/ctest --test-dir build/aarch64 --output-on-failure

# A separate project that finds the installed package.
test-consumer: $(BUILD)/build.ninja
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build $(BUILD)
	$(BIN)/cmake --install $(BUILD) --prefix build/prefix >/dev/null
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S tests/consumer -B build/consumer -G Ninja \
	  -DCMAKE_PREFIX_PATH=$(abspath build/prefix)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build build/consumer
	build/consumer/consumer

test-python: $(VENV)/.test-tools
	$(BIN)/python -m pytest --doctest-modules --pyargs llava_fa tests/python tests/cuda

lint: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cp $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('platlib'))")/llava_fa/_core.pyi \
	  python/llava_fa/
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h' '*.cpp' '*.hpp' '*.cu' '*.cuh')

wheel:
	$(PYTHON) -m pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir dist .

clean:
	rm -rf build dist $(VENV)
