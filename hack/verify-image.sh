#!/usr/bin/env bash
# Fails when `make docker-build` would: builds the operator by the Dockerfile's own command from exactly what .dockerignore admits, in a directory of its own. It needs no engine, so it
# runs where the image is never built.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "verify: $*" >&2; exit 1; }

go=$(sed -n 's/^toolchain go//p' go.mod)
grep -q "^FROM golang:$go " Dockerfile || fail "the Dockerfile builds with another Go than go.mod names: write FROM golang:$go"
build=$(sed -n 's|^RUN \(.*go build .*\)-o /manager |\1-o "$tmp/manager" |p' Dockerfile)
[[ -n "$build" ]] || fail "the Dockerfile has no line 'RUN … go build … -o /manager …' to try"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd hack/dockerignore && GOWORK=off go run . ../.. "$tmp/context") || fail "what .dockerignore admits could not be copied"
(cd "$tmp/context" && VERSION=verified && export GOWORK=off && eval "$build") ||
	fail "the image cannot be built from what .dockerignore admits: admit what the operator's packages import and embed"
[[ "$("$tmp/manager" version)" == "saga-operator verified "* ]] || fail "the Dockerfile's command does not put the version into the operator"
