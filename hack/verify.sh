#!/usr/bin/env bash
# Fails when something generated is out of date, a linter finds something, a module is not tidy, the image could not be built, or a file is not tracked. Each failure says what to do.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "verify: $*" >&2; exit 1; }

# state tells the contents of all files from any others, also of those that were changed already.
state() {
	{ git diff --binary HEAD; git ls-files --others --exclude-standard | git hash-object --stdin-paths; } | git hash-object --stdin
}

before=$(state)
for module in . hack/tools hack/controlplane hack/dockerignore; do
	(cd "$module" && go mod tidy -diff >/dev/null) || fail "go.mod of $module is not tidy: run 'make tidy' and commit"
done
make --no-print-directory generate
after=$(state)
if [[ "$before" != "$after" ]]; then
	git --no-pager diff --stat >&2
	fail "generated files are out of date: run 'make generate' and commit what has changed"
fi
untracked=$(git ls-files --others --exclude-standard)
[[ -z "$untracked" ]] || fail "these files are not tracked; commit them or ignore them:"$'\n'"$untracked"

make --no-print-directory lint
for overlay in config/crd config/default config/network-policy config/samples; do
	bin/tools/kustomize build "$overlay" >/dev/null || fail "kustomize cannot build $overlay"
done
hack/verify-image.sh
for name in $(grep -oE '`(Test|Fuzz)[A-Za-z0-9]+`' SECURITY.md | tr -d '`' | sort -u); do
	git grep -qE "^func $name\(" -- '*_test.go' || fail "SECURITY.md names $name, and there is no such test: name the one that shows the rule now"
done
bash -n .ci/run hack/*.sh hack/controlplane/*.sh
echo "verify: everything is up to date"
