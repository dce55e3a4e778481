# What a person needs: `make demo` shows it, `make test` checks it.
CARGO ?= cargo
PYTHON ?= python3
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: all demo test test-rust test-python test-wheel test-root test-nbdkit run-test-nbdkit types sim teeth mutants bench bench-peers header lint docs wasm test-wasm test-wasm-python fuzz \
	sanitize-thread sanitize-address valgrind lib install uninstall test-install abi abi-dump clean

# The simulator wants simulated disks in the library; what is shipped is built without.
all:
	$(CARGO) build --release --locked --workspace --exclude blkmirror-sim

# A disk image is mirrored while it is written to, switched over, and checked.
demo:
	$(CARGO) run --release --locked --quiet -p blkmirror-cli -- demo

test: test-rust test-python

test-rust:
	$(CARGO) test --locked --workspace --features blkmirror/testing

test-python:
	$(CARGO) build --locked
	BLKMIRROR_LIBRARY=$(abspath $(TARGET))/debug/$(if $(filter Darwin,$(shell uname)),libblkmirror.dylib,libblkmirror.so) \
		$(PYTHON) -m unittest discover -s bindings/python/tests

# The nbdkit plugin against real clients. It needs what scripts/host-packages lists, and says loudly what it could not run;
# with BLKMIRROR_REQUIRE_TOOLS=1 that is a failure.
test-nbdkit:
	@command -v nbdkit >/dev/null || { echo "NOT TESTED: hosts/nbdkit: nbdkit is missing (scripts/host-packages lists what to install)"; \
		test -z "$(BLKMIRROR_REQUIRE_TOOLS)"; }
	@! command -v nbdkit >/dev/null || $(MAKE) --no-print-directory run-test-nbdkit

# The plugin's tests themselves. nbdsh is of the system's Python, and so are they.
run-test-nbdkit:
	$(CARGO) build --locked -p blkmirror -p blkmirror-cli
	$(MAKE) -s -C hosts/nbdkit BLKMIRROR_DIR=$(abspath $(TARGET))/debug OUT=$(abspath $(TARGET))/nbdkit
	BLKMIRROR_PLUGIN=$(abspath $(TARGET))/nbdkit/nbdkit-blkmirror-plugin.so BLKMIRROR_CLI=$(abspath $(TARGET))/debug/blkmirror \
		$(PYTHON) -m unittest discover -s hosts/nbdkit/tests

# The Python package and a host of it, as a type checker sees them. It needs mypy.
types:
	$(PYTHON) -m mypy --strict bindings/python/src $(addprefix bindings/python/tests/,test_surface.py test_hostile.py test_buffers.py test_asyncio.py test_progress.py test_package.py scenarios.py world.py wasm)

# The Python package as it is installed: a wheel and an sdist are built, looked into and tested in environments elsewhere. pip
# fetches setuptools, build, numpy and auditwheel.
test-wheel:
	$(PYTHON) scripts/test-wheel

# Those that mount file systems and make loop devices.
test-root:
	$(CARGO) test --locked --workspace --features blkmirror/testing -- --ignored --nocapture

# Simulated worlds: `make sim SEEDS=100000 FROM=1000000` runs others and more.
SEEDS ?= 20000
FROM ?= 0
STEPS ?= 2000
sim:
	$(CARGO) run --release --locked --quiet -p blkmirror-sim -- --seeds $(SEEDS) --from $(FROM) --steps $(STEPS)

# Each planted bug of teeth/ is caught.
teeth:
	scripts/teeth

# Each small change of the core that cargo-mutants can think of, all in one build, and whether the tests see it: docs/MUTANTS.md.
# MUTANTS="engine/rate" asks about some, MUTANTS=--show tells what is known. It needs cargo-mutants.
mutants:
	$(PYTHON) scripts/mutants $(MUTANTS)

bench:
	$(CARGO) bench --locked

# Ours and its peers in turn, as far as they are installed: docs/PERFORMANCE.md. PEERS are options, such as --quick or --list.
bench-peers:
	$(CARGO) build --release --locked --quiet -p blkmirror-cli
	$(PYTHON) scripts/bench-peers $(PEERS)

header:
	$(CARGO) run --locked --quiet -p capi-tests --bin gen-header

lint:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path hosts/wasm/Cargo.toml --check
	$(CARGO) clippy --locked --workspace --all-targets --features blkmirror/testing -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

wasm:
	scripts/wasm

# The module: what it is made of, and at work in hosts that embed it. docs/WEBASSEMBLY.md tells of it. The lints of the host are
# here because Wasmtime is compiled here.
test-wasm: wasm
	CARGO_TARGET_DIR=$(abspath $(TARGET))/hosts-wasm \
		$(CARGO) clippy --locked --manifest-path hosts/wasm/Cargo.toml --all-targets -- -D warnings
	BLKMIRROR_WASM=$(abspath $(TARGET))/wasm/blkmirror.wasm CARGO_TARGET_DIR=$(abspath $(TARGET))/hosts-wasm \
		$(CARGO) test --locked --manifest-path hosts/wasm/Cargo.toml

# The Python package over the module: its whole suite, what only the module has, and the scenarios of both sides compared. pip fetches
# wasmtime, into an environment of its own. docs/WEBASSEMBLY-python.md tells of it.
WASM_PYTHON := $(TARGET)/wasm/python
test-wasm-python: wasm
	$(CARGO) build --locked
	test -x $(WASM_PYTHON)/bin/python || $(PYTHON) -m venv $(WASM_PYTHON)
	$(WASM_PYTHON)/bin/python -m pip install --quiet --disable-pip-version-check 'wasmtime>=45'
	for tests in tests tests/wasm; do \
		BLKMIRROR_LIBRARY=$(abspath $(TARGET))/debug/$(if $(filter Darwin,$(shell uname)),libblkmirror.dylib,libblkmirror.so) \
			BLKMIRROR_WASM=$(abspath $(TARGET))/wasm/blkmirror.wasm BLKMIRROR_BACKEND=wasm \
			$(WASM_PYTHON)/bin/python -m unittest discover -s bindings/python/$$tests || exit 1; \
	done

# Each fuzz target for SECONDS; TARGETS chooses some of api, options and bitmap.
fuzz:
	SECONDS_EACH=$(or $(SECONDS),60) scripts/fuzz $(TARGETS)

# Tests and C programs under a sanitizer; PROGRAMS chooses some of the latter.
sanitize-thread sanitize-address:
	scripts/sanitize $(@:sanitize-%=%) $(PROGRAMS)

valgrind:
	scripts/sanitize valgrind $(PROGRAMS)

# The C library: headers, shared and static library, files for pkg-config and CMake, at DESTDIR/PREFIX. LIBDIR and INCLUDEDIR
# can be named too.
export PREFIX DESTDIR LIBDIR INCLUDEDIR
lib:
	scripts/install build

install uninstall:
	scripts/install $@

# Installs into scratch folders and uses it from C and C++, with make, CMake and meson. scripts/host-packages lists what it needs.
test-install:
	scripts/test-install $(PARTS)

# Whether programs that were built before run with what the header declares now; abi-dump keeps what it declares.
abi:
	scripts/abi check

abi-dump:
	scripts/abi dump

clean:
	$(CARGO) clean
