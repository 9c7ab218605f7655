# `make demo` runs the main job for real; `make test` is all of CI. Both install what they need (as root: Debian packages).

GO      ?= go
BUILD   := $(CURDIR)/build
BIN     := $(BUILD)/bin
KERNEL  := $(BUILD)/cache/kernels/default
FUZZTIME ?= 10s
# what tests and demo use beside Go: a VMM, FUSE's helper, and judges nobody here wrote
PACKAGES := qemu-system-x86 qemu-system-data fuse3 erofs-utils mmdebstrap umoci skopeo docker-registry cryptsetup-bin ca-certificates procps curl e2fsprogs mount

export PATH := $(BIN):$(PATH)
export PEX_BUILD := $(BUILD)

.PHONY: all build deps kernel image demo lint test fuzz bench chaos clean
all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/ ./cmd/pex ./cmd/pexfs
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o $(BIN)/ ./cmd/pex-init

# dpkg -s fails on the first package that is missing; then all are asked for
deps:
	@dpkg -s $(PACKAGES) >/dev/null 2>&1 || { \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 $(PACKAGES); }

kernel: $(KERNEL)
$(KERNEL): | build deps
	$(BIN)/pex kernel fetch --cache-dir $(BUILD)/cache

# a Debian with python3, in two layers, and the same as eStargz
image: $(BUILD)/image/demo-estargz/index.json
$(BUILD)/image/demo-estargz/index.json: e2e/demo/make-image | build deps
	e2e/demo/make-image $(BUILD)/image

demo: build deps kernel image
	@e2e/demo/run $(BUILD)

lint:
	@test -z "$$(gofmt -l .)" || { echo "not gofmt'd:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Every test runs: a skipped one fails the whole. Then every fuzz target does, for a few seconds.
test: build deps kernel image lint
	@$(GO) test -v -count=1 -timeout 18m ./... >$(BUILD)/test.log 2>&1; s=$$?; \
	  grep -E '^(ok|FAIL|panic:|\?)|^ *--- (FAIL|SKIP)' $(BUILD)/test.log; \
	  if [ $$s != 0 ]; then echo; tail -n 200 $(BUILD)/test.log; exit $$s; fi; \
	  if grep -q '^ *--- SKIP' $(BUILD)/test.log; then echo "tests were skipped"; exit 1; fi
	@$(MAKE) --no-print-directory fuzz

# Every fuzz target for FUZZTIME, two at once: make fuzz FUZZTIME=3m
fuzz: deps
	@GO="$(GO)" e2e/fuzz/run $(BUILD) $(FUZZTIME) 2

# What the project is for, measured against what else does it, as root: make bench IMAGES=DIR BENCH='-only cold -runs 11' (see e2e/bench)
bench: build image
	@$(MAKE) --no-print-directory deps PACKAGES="$(PACKAGES) containerd iproute2"
	$(GO) build -C e2e/bench/stargz -trimpath -o $(BUILD)/bench/bin/ .
	$(GO) build -trimpath -o $(BUILD)/bench/bin/ ./e2e/bench
	@$(BUILD)/bench/bin/bench $(if $(IMAGES),-images $(IMAGES)) $(BENCH)

# Kills, load and a soak, as root, in less than 15 minutes: make chaos CHAOS='-only kills -seed 7', '-soak 10m', '-json FILE' (see e2e/chaos)
chaos: build kernel image
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o $(BUILD)/chaos/ ./e2e/chaos
	@$(BUILD)/chaos/chaos $(CHAOS)

clean:
	rm -rf $(BUILD)
