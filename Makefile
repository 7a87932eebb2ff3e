# `make smoke` and `make test` do all their set-up; see README.md.
.PHONY: help setup smoke test test-long vllm chart images test-images lint format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: ## Install system packages (apt, where possible) and Python packages into .venv
	@bash scripts/setup.sh

smoke: ## The whole training loop on this machine, no GPU (PROVIDER=simulated: without real desktops)
	@bash scripts/smoke.sh

test: setup ## All tests; tiers that cannot run here say why and are skipped
	@.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-long: vllm ## What takes minutes of CPU besides: more of the vllm engine, soak, kills
	@.venv/bin/python -m pytest -m long $(ARGS)

vllm: setup ## Make .cache/vllm-venv (vLLM's CPU build, 4 GB), in which `make test` runs the vllm engine
	@bash scripts/setup_vllm.sh

chart: setup ## Write the chart's presets, schema, table of values and golden renders anew
	@.venv/bin/python scripts/chart/refresh.py

images: ## Build the env-server's images with Podman into .cache/images (root; ten minutes the first time)
	@bash scripts/setup_images.sh $(ARGS)

test-images: setup images ## Build the images and test their containers with Podman; `make test` does where they are built
	@.venv/bin/python -m pytest tests/images

lint: setup ## ruff, mypy, import-linter
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup ## Format and fix what can be fixed
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

clean: ## Remove .venv and caches; runs/ is kept
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info
