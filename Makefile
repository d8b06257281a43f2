# The menu of developer commands: `make help`. CI runs the same ones.
# Everything that starts containers needs root; each such node lives in namespaces of its own.

SHELL := /bin/bash -o pipefail
TARGET := $(or $(CARGO_TARGET_DIR),target)
SCRIPTS := .ci/run $(addprefix tests/vm/,init limits networks apparmor reboot systemd systemd-init systemd-machine) $(filter-out %/check-licences %/__pycache__,$(wildcard tests/bin/*))
HELM = $(shell tests/bin/fetch-helm)
# Only the debug build that tests run has the points where they kill it; docs/testing.md says how.
FAILPOINTS := nodelet/failpoints
LOGGER_TARGET := $(shell uname -m)-unknown-linux-gnu

.DEFAULT_GOAL := help
.PHONY: help demo test check e2e vm bench bench-api bench-limits bench-networks bench-pulls crds image images build logger deps clean

help: ## this menu
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: deps build images ## run the example shop on a containerd of its own, show it, remove it: about a minute after the build
	cargo run -q -p nodelet-tests --bin demo

test: deps build images ## all tests: unit, integration, and end to end on containerd 1.6 and 2.x
	tests/bin/fetch-containerd || [ $$? = 3 ]
	NODELET_PYTHON="$$(tests/bin/fetch-python-client || echo python3)" cargo nextest run --workspace --features $(FAILPOINTS) --no-fail-fast

e2e: deps build images ## only the end-to-end tests; FILTER=name picks some
	tests/bin/fetch-containerd || [ $$? = 3 ]
	cargo nextest run -p nodelet-tests --no-fail-fast $(FILTER)

check: deps ## format, lints, docs, licences, generated files, chart, scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked -q
	tests/bin/check-licences
	diff -r crds/yaml charts/nodelet/crds
	$(HELM) lint --strict charts/nodelet
	$(HELM) template nodelet charts/nodelet --kube-version 1.30.0 --include-crds >/dev/null
	shellcheck $(SCRIPTS)
	tests/bin/check-text

vm: deps build images ## in virtual machines: limits on cgroup v2, VLANs, ipvlan, SCTP, AppArmor, reboots with a power cut and a wrong clock, and systemd
	cargo test -q --no-run -p nodelet-drivers
	tests/bin/vm limits
	tests/bin/vm networks
	tests/bin/vm apparmor
	tests/bin/vm reboot
	tests/bin/vm systemd

bench: export NODELET_LOGGER = $(abspath $(TARGET)/$(LOGGER_TARGET)/logger/nodelet-logger)
bench: deps build images logger ## measure against ctr, podman and docker on this machine; writes docs/benchmarks.md
	cargo build --release -p nodelet
	cargo run --release -p nodelet-bench -- workloads --output docs/benchmarks.md
	cargo run --release -p nodelet-bench -- workloads --containerd-2 --output docs/benchmarks.md

bench-api: ## measure the API server, against kube-apiserver and etcd where $$KUBEBUILDER_ASSETS has them; writes docs/benchmarks.md
	cargo build --release -p nodelet-bench
	cargo run --release -p nodelet-bench -- api --output docs/benchmarks.md

bench-limits: deps build images ## measure how exact limits are and how soon a change is in force; writes docs/benchmarks.md
	cargo build --release -p nodelet -p nodelet-logger -p nodelet-bench
	cargo run --release -p nodelet-bench -- limits --output docs/benchmarks.md

bench-networks: deps ## measure attachments, ports, names and throughput; writes docs/benchmarks.md
	cargo run --release -p nodelet-bench -- networks --output docs/benchmarks.md

bench-pulls: deps build images ## measure cold pulls against ctr, podman and docker; PIGZ=dir has unpigz; writes docs/benchmarks.md
	cargo build --release -p nodelet -p nodelet-logger -p nodelet-bench
	cargo run --release -p nodelet-bench -- pulls $(if $(PIGZ),--pigz $(PIGZ)) --output docs/benchmarks.md

crds: ## regenerate the CRD YAML, the chart's copy and the reference page
	UPDATE_GENERATED=1 cargo test -q -p nodelet-crds >/dev/null
	rm -rf charts/nodelet/crds && cp -r crds/yaml charts/nodelet/crds

image: logger ## the agent's image, an OCI archive in .cache/nodelet-image.tar, without a Docker daemon
	cargo build --release -p nodelet
	cargo run -q -p nodelet-tests --bin images -- agent --nodelet $(TARGET)/release/nodelet \
	    --logger $(TARGET)/$(LOGGER_TARGET)/logger/nodelet-logger --output .cache/nodelet-image.tar

images: ## the test images, built from this machine's packages into .cache/images
	cargo run -q -p nodelet-tests --bin images -- test

build: ## the agent and its logger, for development
	cargo build -p nodelet -p nodelet-logger --features $(FAILPOINTS)

logger: ## the logger as shipped: static and small
	RUSTFLAGS="-C target-feature=+crt-static" cargo build -p nodelet-logger --profile logger --target $(LOGGER_TARGET)

deps: ## install what is missing (Debian, Ubuntu), saying what and why
	@tests/bin/install-deps

clean: ## remove everything built and cached
	cargo clean
	rm -rf .cache
