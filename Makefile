# The course's commands. Each calls one program; `make PYTHON=/path/to/python3.11 lab` chooses the Python (else python3,
# or a python3.11 or python3.12 beside it), `make GPU=1 setup` the torch build with CUDA.
PYTHON ?= python3
RUN := .venv/bin/python -m
WORKERS ?= 2
PYTEST := $(RUN) pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
	-n $(WORKERS) --dist loadgroup --no-loadscope-reorder
# Idle OpenMP threads that spin steal the cores from everything else.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: course test test-long test-portable lab slides site notebooks bench lint clean setup data

course: data        ## execute every lesson into build/executed/
	@$(RUN) course_utils.authoring.run_course
test: data          ## everything CI runs on a change; ONLY=05: what concerns that lesson
	@$(PYTEST) --nbval-cell-timeout 300 --durations=25 $(if $(ONLY),--lesson $(ONLY))
test-long: data     ## what CI runs every night: the campaigns of which `test` runs samples, then test-portable
	@$(PYTEST) --durations=25 -m long tests
	@$(MAKE) --no-print-directory test-portable
lab: data           ## JupyterLab on copies of the lessons in work/; NEW=03: a newer lesson 03 beside yours; ARGS="--port 9000"
	@exec $(RUN) course_utils.authoring.lab $(if $(NEW),--new '$(NEW)') $(ARGS)
slides: setup       ## build/slides/*.html
	@$(RUN) course_utils.authoring.decks.build
site: data          ## the whole course as a web page: build/site/index.html
	@$(RUN) course_utils.authoring.site.build
notebooks: data     ## source -> executed notebook, lessons and decks whose source changed (ONLY=01, FORCE=--force)
	@$(RUN) course_utils.authoring.build $(FORCE) $(ONLY)
bench: data         ## every measurement of bench/
	@set -e; for program in bench/bench_*.py; do echo "== $$program"; .venv/bin/python $$program; done
test-portable: data  ## the committed outputs once more, as a processor without vector instructions computes them
	@OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
		$(PYTEST) --nbval-cell-timeout 600 tests/authoring/test_build.py notebooks
lint: setup
	@$(RUN) ruff check . && $(RUN) ruff format --check .
clean:              ## remove what was built; the data cache and .venv stay
	@rm -rf build .pytest_cache .ruff_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
setup:
	@$(PYTHON) course_utils/authoring/set_up.py $(if $(GPU),--gpu)
data: setup         ## the corpus and the tokenizer, built once
	@$(RUN) course_utils.authoring.build_data
