# Everything a person or a script does with this tree. `make help` lists it.
# Needs Go and nothing else, except where a target says so.

SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c

GO        ?= go
VERSION   := $(or $(shell git describe --tags --always --dirty 2>/dev/null),unversioned)
LDFLAGS   := -s -w -X main.version=$(VERSION)
LINTER    := v2.15.0
FUZZTIME  ?= 30s
OUTAGE    ?= 20s
CACHE     := $(CURDIR)/.cache

# Root is needed to load BPF programs and to make network namespaces. Builds stay
# the caller's; only what runs is raised, with the caller's OTEL_ and WEFT_ variables.
KEEP := $(shell env | sed -n 's/^\(OTEL_[A-Z0-9_]*\|WEFT_[A-Z0-9_]*\|NO_COLOR\|TERM\)=.*/\1/p' | paste -sd, -)
ifneq ($(shell id -u),0)
SUDO := sudo $(if $(KEEP),--preserve-env=$(KEEP))
EXEC := -exec "$(SUDO) env PATH=$(PATH) HOME=$(HOME)"
endif

.DEFAULT_GOAL := help
.PHONY: help build image run demo test test-otlp test-receivers test-runtimes test-kubernetes test-kernels bench generate generate-check lint fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

build: ## bin/weftd and bin/flowctl
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./tools/weftd ./tools/flowctl

image: build ## bin/weft-image.tar, a container image of both programs and nothing else: for docker load, podman load, ctr image import
	$(GO) run ./tools/image -o bin/weft-image.tar -tag weft:$(VERSION) -version $(VERSION) bin/weftd bin/flowctl
	@echo 'weft:$(VERSION) is in bin/weft-image.tar; name it in deploy/kubernetes.yaml'

run: build ## the agent on this host's interfaces, flows on the terminal; Ctrl-C leaves nothing behind (ARGS="-config FILE")
	@$(SUDO) bin/weftd -print $(ARGS)

demo: build ## a small network of namespaces with real traffic, watched for DEMO_SECONDS (20); cleans up
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./tools/demo
	@$(SUDO) tools/demo/demo.sh $(DEMO_SECONDS)

test: ## every test that needs no other kernel; one package at a time, since they share the kernel's locks
	$(GO) test -count=1 -p 1 $(EXEC) ./...
	$(MAKE) --no-print-directory test-otlp
	@echo 'left out: receivers of others (make test-receivers), real container runtimes (make test-runtimes, make test-kubernetes), other kernels (make test-kernels), long fuzzing (make fuzz), measurements (make bench)'

test-otlp: ## the export against a real OpenTelemetry receiver in the tests' process (a module of its own)
	cd exporter/receivertest && $(GO) test -count=1 $(EXEC) ./...

test-receivers: ## what weftd sends, as the Collector, Prometheus, VictoriaMetrics and DuckDB have it; builds them from the module proxy first (20 min, once; needs node and npm)
	tools/receivers/build.sh $(CACHE)/receivers
	$(GO) test -count=1 -tags receivers -run 'HasWhat|FilesHave|DuckDB' -exec "$(SUDO) env RECEIVERS=$(CACHE)/receivers PATH=$(PATH) HOME=$(HOME)" ./tools/weftd
	cd exporter/receivertest && $(GO) test -count=1 -v -timeout 30m -run 'KilledAgentsSay|KilledWhilePackets' -exec "$(SUDO) env CHAOS_LIVES=200 PATH=$(PATH) HOME=$(HOME)" .

test-runtimes: ## topology and names against real gVisor, containerd, Docker and Podman and a QEMU machine that boots by network (WEFT_TESTBED=the folder with their programs; needs runc docker.io podman slirp4netns containernetworking-plugins qemu-system-x86 ipxe-qemu busybox-static)
	@test -n "$(WEFT_TESTBED)" || { echo 'set WEFT_TESTBED to the folder that the testbed was unpacked into' >&2; exit 2; }
	$(GO) test -count=1 $(EXEC) ./cni
	$(GO) test -count=1 -tags testbed -run FlowsOfAGuest $(EXEC) ./tools/weftd

test-kubernetes: ## a real Kubernetes of two nodes, 5,000 pods of a real API server that is away for OUTAGE (20s), a real containerd (needs what tools/testbed/parts.sh names)
	tools/testbed/parts.sh $(CACHE)/testbed
	$(GO) test -count=1 -tags testbed -run 'ThousandsOfPods|EveryFlowBetween|Outlive|DaemonSet' -timeout 150m -exec "$(SUDO) env TESTBED_OUTAGE=$(OUTAGE) TESTBED_PARTS=$(CACHE)/testbed PATH=$(PATH) HOME=$(HOME)" ./cni ./tools/weftd

test-kernels: ## the tests of data plane, topology and names, and of tenants in VRFs and VLANs, in 6.1 and 6.12 guests (needs qemu-system-x86 kmod cpio busybox-static xz-utils)
	tools/kernels/matrix.sh

bench: build ## cost per packet as ratios, the drain, the agent on real traffic, names and links, the exporter; recorded in bench/results
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./bench
	@mkdir -p bench/results && out=bench/results/$$(date -u +%F)-$$(uname -r).txt && \
	{ $(SUDO) bin/bench && $(GO) test -run '^$$' -bench 'Drain|Drop|Sockets' $(EXEC) ./dataplane && \
	$(GO) test -run '^$$' -bench 'Resolve$$|LinkToHop|Translation|WorstDrain' $(EXEC) ./cni && \
	$(GO) test -run '^$$' -bench OTLPLine -cpu 1 ./exporter && \
	cd exporter/receivertest && $(GO) test -run '^$$' -bench 'Encode|Columns|Parquet' -cpu 1 . && \
	$(GO) test -run '^$$' -bench 'Delivery|Spool' -benchtime 5x -timeout 40m .; } | tee "$$out.new" && \
	mv "$$out.new" "$$out" && echo "recorded in $$out"

generate: ## BPF objects, their Go loaders and the API's Go code (needs clang-19, llvm-19, libbpf-dev, protobuf-compiler)
	$(GO) generate ./...

GENERATED = find . -name .cache -prune -o \( -name '*_bpfel*.*' -o -name '*_bpfeb.*' -o -name '*.pb.go' \) -print | LC_ALL=C sort | xargs sha256sum
generate-check: ## fail when a generated file is not what its source makes
	@before=$$(mktemp) && after=$$(mktemp) && trap 'rm -f "$$before" "$$after"' EXIT && \
	$(GENERATED) > "$$before" && $(MAKE) --no-print-directory generate && $(GENERATED) > "$$after" && \
	diff "$$before" "$$after" || { echo 'generated files differ from their source: commit what `make generate` made' >&2; exit 1; }

lint: $(CACHE)/bin/golangci-lint-$(LINTER) ## formatting, vet, golangci-lint and the import star (needs clang-format-19, shellcheck)
	$< run ./...
	cd exporter/receivertest && $< run --config $(CURDIR)/.golangci.yml ./...
	clang-format-19 --dry-run -Werror $$(find bpf bench -name '*.[ch]')
	shellcheck .ci/run tools/*/*.sh exporter/api/*.sh

$(CACHE)/bin/golangci-lint-$(LINTER):
	GOBIN=$(CACHE)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINTER)
	mv $(CACHE)/bin/golangci-lint $@

fuzz: ## every fuzz target for FUZZTIME (30s)
	@set -e; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $(EXEC) $$p; \
		done; done

clean: ## remove what the targets made
	rm -rf bin .cache
