# Everything here needs Python 3.11 or later and nothing else.
#   make demo                 the main job on phantom hospitals (DATA=folder: on your own images)
#   make demo-flare           the same as four processes over NVIDIA FLARE and mutual TLS on loopback
#   make test                 the default test suite
#   make test-node            the DICOM node against Orthanc and dcmtk, where they are installed; kill −9 (SLOW=1: 200
#                             series, 20 kills)
#   make test-browser         the review page in Chromium, where it is installed
#   make test-federation      hospitals as real processes over mTLS, in an environment of its own; faults included
#   make test-tensorflow      what needs TensorFlow, ONNX or OpenVINO, with hospitals over FLARE, in an environment beside .venv
#   make setup                only the environment, in .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo-output
EXTRAS := test,style,browser

FEDERATION := .venv-federation
FEDERATION_STAMP := $(FEDERATION)/.installed
TENSORFLOW := .venv-tensorflow
TENSORFLOW_STAMP := $(TENSORFLOW)/.installed
PURELIB := 'import sysconfig; print(sysconfig.get_path("purelib"))'
# As root the tests get a network of loopback alone, and fail if anything tries another address. The route is for
# FLARE, which asks the kernel, without sending, from which address it would reach 10.255.255.255.
ISOLATED := $(if $(filter 0,$(shell id -u)),$(if $(shell unshare -n true 2>/dev/null && echo yes),unshare -n sh -c 'ip link set lo up && ip route add 10.255.255.255 dev lo && exec "$$@"' sh))

.PHONY: setup demo demo-flare test test-slow test-browser test-node test-federation test-tensorflow style clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("consilium needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(STAMP)

demo: setup
	$(BIN)/consilium demo $(if $(DATA),--data '$(DATA)') --out '$(OUT)'

test: setup
	$(BIN)/python -m pytest -q -n 2

test-slow: setup
	$(BIN)/python -m pytest -q -n 2 -m slow

test-node: setup
	$(BIN)/python -m pytest -q -m '$(if $(SLOW),network,network and not slow)' tests/node

test-browser: setup
	$(BIN)/python -m pytest -q -m browser

# Like the one for TensorFlow it sees the packages of .venv, so that the large ones are not installed twice.
$(FEDERATION_STAMP): $(STAMP)
	test -x $(FEDERATION)/bin/python || $(PYTHON) -m venv $(FEDERATION)
	$(BIN)/python -c $(PURELIB) > "$$($(FEDERATION)/bin/python -c $(PURELIB))/beside.pth"
	$(FEDERATION)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,federation]'
	@touch $(FEDERATION_STAMP)

demo-flare: $(FEDERATION_STAMP)
	$(FEDERATION)/bin/consilium demo --flare --out '$(OUT)'

test-federation: $(FEDERATION_STAMP)
	$(ISOLATED) $(FEDERATION)/bin/python -m pytest -q -n 2 -m '$(if $(SLOW),network,network and not slow)' tests/federation

# Beside the packages of .venv TensorFlow, FLARE and the runtimes that a model is converted for are installed.
$(TENSORFLOW_STAMP): $(STAMP)
	test -x $(TENSORFLOW)/bin/python || $(PYTHON) -m venv $(TENSORFLOW)
	$(BIN)/python -c $(PURELIB) > "$$($(TENSORFLOW)/bin/python -c $(PURELIB))/beside.pth"
	$(TENSORFLOW)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tensorflow,federation,onnx,openvino,test]' onnxruntime
	@touch $(TENSORFLOW_STAMP)

test-tensorflow: $(TENSORFLOW_STAMP)
	$(TENSORFLOW)/bin/python -m pytest -q -n 2 --dist worksteal -m 'not gpu and not network$(if $(SLOW),, and not slow)' tests/tensorflow tests/inference/test_onnx_graph.py tests/inference/test_openvino.py
	$(TENSORFLOW)/bin/python -m pytest -q -m network tests/tensorflow

style: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(FEDERATION) $(TENSORFLOW) $(OUT) .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
