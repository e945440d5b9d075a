# Every target sets up what it needs: a virtual environment in .venv, with exactly what requirements.lock says.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow docs bench crash gpu gpu-wheels lint lock clean

demo: .venv/ready            ## the main job on the built-in data: a teacher taught, a student distilled
	$(BIN)/kd preview schedule=cosine unfreeze.rate=3
	$(BIN)/python train.py schedule=cosine unfreeze.rate=3

test: .venv/ready            ## style, types and the whole suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder && \
	  { wait $$types || $(BIN)/mypy; }  # what it found, once more at the end

docs: .venv/ready            ## the documentation, into site/index.html; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

slow: .venv/ready            ## the tests that `make test` leaves out: launchers, every encoder of the table, servers that restart
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m slow

bench: .venv/ready           ## what distilling costs, against the student alone and what one would use instead (25 minutes)
	$(BIN)/python -m benchmarks.bench

crash: .venv/ready           ## kill trainings at random moments, damage run folders, type odd passwords (an hour and more)
	$(BIN)/python benchmarks/crash.py --kills 50
	KD_FUZZ=1000 $(BIN)/python -m pytest tests/end_to_end/test_hostile_folders.py tests/end_to_end/test_passwords.py

ifdef WHEELS
gpu:                         ## what only a GPU can tell, in 8 minutes; benchmarks/GPU.md says what, and how without a network
	$(PYTHON) -m pip --disable-pip-version-check install --quiet --no-index --no-deps --upgrade --target gpu-packages $(WHEELS)/*.whl
	PYTHONPATH=gpu-packages:. $(PYTHON) -m benchmarks.gpu
else
gpu: .venv/ready
	$(BIN)/python -m benchmarks.gpu
endif

gpu-wheels:                  ## what a machine with torch but without a network lacks for that, into gpu-wheels/
	$(PYTHON) -m benchmarks.on_gpu.wheels gpu-wheels

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	touch $@

lint: .venv/ready            ## mend the style, and look at the types
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

lock:                        ## renew requirements.lock (needs uv)
	uv pip compile --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11 --extra dev pyproject.toml -o requirements.lock

clean:                       ## remove the environment; runs/ and mlruns/ stay
	rm -rf .venv
