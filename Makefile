# Everything runs from a clean clone: each target sets up what it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

# make patch-llamacpp LLAMA_CPP_DIR=~/src/llama.cpp BACKEND=vulkan CMAKE_FLAGS="-DGGML_NATIVE=OFF"
LLAMA_CPP_DIR ?=
BACKEND       ?= auto
CMAKE_FLAGS   ?=
CPU           ?= native
BENCH_ARGS    ?=
BUILD_ARGS     = --cpu $(CPU) $(foreach flag,$(CMAKE_FLAGS),--cmake-flag=$(flag))
PATCH_ARGS     = --backend $(BACKEND) $(if $(LLAMA_CPP_DIR),--tree "$(LLAMA_CPP_DIR)") \
                 $(BUILD_ARGS)

.PHONY: help setup patch-llamacpp demo lint test tiers test-llamacpp test-sanitize \
        test-variants fuzz \
        bench bench-convert bench-convert-16g clean

help:
	@echo "make demo               base + heads -> one GGUF -> patched llama.cpp -> proof, on the embedded model"
	@echo "make test               set up everything, lint, run the tests (VULKAN=0: without those on Vulkan;"
	@echo "                        CPU=x86-64-v2, -v3, -v4 or native: on llama.cpp built for that kind of CPU)"
	@echo "make patch-llamacpp     get, patch and build llama.cpp (LLAMA_CPP_DIR=, BACKEND=, CMAKE_FLAGS=)"
	@echo "make lint               ruff and mypy"
	@echo "On demand:"
	@echo "make test-sanitize      the patched loader under AddressSanitizer and UBSan, over hostile files"
	@echo "make test-variants      with a CPU library for each kind of CPU, and with one series of patches alone"
	@echo "make test-llamacpp      llama.cpp's own tests on the patched tree"
	@echo "make tiers              the table of tiers in docs/backends.md, CPU and Vulkan"
	@echo "make fuzz               fuzz everything that reads files of strangers (MINUTES=60)"
	@echo "make bench              stock beside patched on the real shapes (BENCH_ARGS=--quick)"
	@echo "make bench-convert      converting beside cp (BENCH_ARGS=\"--llama-cpp TREE --python PY\")"
	@echo "make bench-convert-16g  a sparse 16 GB checkpoint within 1 GiB of address space"

setup: $(STAMP)

$(STAMP): pyproject.toml tools/setup.sh
	PYTHON="$(PYTHON)" tools/setup.sh $(VENV)
	@touch $@

patch-llamacpp: $(STAMP)
	$(BIN)/python tools/patch_llamacpp.py $(PATCH_ARGS)

demo: $(STAMP)
	$(BIN)/python tools/patch_llamacpp.py $(PATCH_ARGS) --target llama-speculative-simple
	$(BIN)/python tools/demo.py

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The comparison variants, the CPU backend, and Vulkan on a software driver: what the tests assert
# does not depend on a GPU. VULKAN=0 leaves the third out.
# CPU= and CMAKE_FLAGS= run the suite on another build, which stays the recorded one until the next.
VULKAN ?= 1
test: lint
	tools/browser.sh
	$(BIN)/python tools/patch_llamacpp.py --backend cpu $(BUILD_ARGS) --variant exact --variant stock --variant avx2 \
	    $(if $(filter 1,$(VULKAN)),--variant vulkan)
	GGUF_MTP_REQUIRE_LLAMA=1 $(BIN)/python -m pytest $(if $(filter 1,$(VULKAN)),,-m "not vulkan")

# Tiers held by type, KV cache, depth and backend, into docs/backends.md; an hour, in steps that are kept.
tiers: $(STAMP)
	$(BIN)/python tools/patch_llamacpp.py --backend cpu --variant vulkan
	$(BIN)/python tools/tier_table.py

# The code of the patches that reads files, under AddressSanitizer and UBSan, over hostile files.
test-sanitize: $(STAMP)
	$(BIN)/python tools/patch_llamacpp.py --backend cpu --variant sanitize
	GGUF_MTP_REQUIRE_LLAMA=1 $(BIN)/python -m pytest tests/test_hostile_merged.py tests/test_hostile_drafters.py

# Half an hour on two cores: ggml's CPU code once for each kind of CPU, as distributions build it.
test-variants: $(STAMP)
	$(BIN)/python tools/patch_llamacpp.py --backend cpu --variant stock \
	    --variant every-cpu --variant only-cpu --variant only-mtp
	GGUF_MTP_REQUIRE_LLAMA=1 GGUF_MTP_VARIANTS=1 $(BIN)/python -m pytest tests/test_cpu_variants.py

test-llamacpp: $(STAMP)
	$(BIN)/python tools/run_upstream_tests.py $(if $(LLAMA_CPP_DIR),--tree "$(LLAMA_CPP_DIR)") \
	    $(foreach flag,$(CMAKE_FLAGS),--cmake-flag=$(flag))

MINUTES ?= 60
fuzz: $(STAMP)
	$(BIN)/python tools/fuzz_readers.py --minutes $(MINUTES)

# About 10 GB in the cache, and up to an hour: BENCH_ARGS=--quick is a few minutes.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python tools/run_bench.py --backend $(BACKEND) \
	    $(foreach flag,$(CMAKE_FLAGS),--cmake-flag=$(flag)) $(BENCH_ARGS)

bench-convert: $(STAMP)
	$(BIN)/python tools/bench_convert.py $(BENCH_ARGS)

bench-convert-16g: $(STAMP)
	$(BIN)/python tools/bench_convert.py --e4b-16g $(BENCH_ARGS)

clean:
	rm -rf build $(VENV)
