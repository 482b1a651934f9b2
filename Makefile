# make demo   installs, then runs the demo on the built-in catalogue
# make test   installs, then checks style and types and runs the tests, under Keras 2 and Keras 3
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Two processes, each with whole files, whose tests share what they made. Operations in more than one thread would wait for the other
# process.
PYTEST := TF_NUM_INTRAOP_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
# Tests of what runs under both Kerases; TFRS, and so the ranking models, need Keras 2.
KERAS_3_TESTS := tests/test_esf_net.py tests/test_alignment_attention.py tests/test_knowledge_extractor.py \
	tests/test_knowledge_lookup.py tests/test_two_kerases.py tests/test_strategies.py tests/test_learning_rates.py tests/test_stages.py \
	tests/test_export.py tests/test_check.py::TestInAFreshProcess \
	tests/test_layer_paths.py tests/test_knowledge_embedding.py tests/test_statistics_at_hand.py tests/test_attach_both.py tests/test_bake_attached.py tests/test_attach_into.py tests/test_attach_resume.py tests/test_attach_kinds.py \
	tests/test_attach_output.py tests/test_saved_model_backbone.py tests/test_warm_start.py tests/test_baking.py \
	tests/test_readme.py tests/test_id_dropout.py tests/test_attach_errors.py tests/test_user_knowledge.py \
	tests/test_attach_history.py::test_as_the_formula_has_it_padded_and_ragged \
	tests/test_attach_history.py::test_saved_loaded_and_gone_on_with tests/test_gather_few.py tests/test_preferences.py

.PHONY: demo test lint types test-keras-2 test-keras-3 clean

demo: $(INSTALLED)
	$(BIN)/kser-tf demo

test: lint types test-keras-2 test-keras-3

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy finds kser_tf.layers and kser_tf.pipelines only where they are installed below kser_tf.
types: $(INSTALLED)
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/types --upgrade .
	MYPYPATH=build/types $(BIN)/mypy -p kser_tf
	rm -rf build

test-keras-2: $(INSTALLED)
	TF_USE_LEGACY_KERAS=1 $(PYTEST)

test-keras-3: $(INSTALLED)
	TF_USE_LEGACY_KERAS=0 $(PYTEST) $(KERAS_3_TESTS)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
