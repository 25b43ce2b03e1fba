#!/usr/bin/env bash
# Looks for published vulnerabilities: vulncheck.sh GOVULNCHECK PACKAGES…, from the repository's root. The database is
# $GOVULNDB or the public one. If that cannot be reached, the database is built from its Go module.
set -euo pipefail
cd "$(dirname "$0")/.."

check=$1
shift
code=0
"$check" ${GOVULNDB:+-db "$GOVULNDB"} "$@" || code=$?
# Code 3 means that vulnerabilities were found; 1 is a failure of the check itself.
[[ $code -eq 1 && -z "${GOVULNDB:-}" ]] || exit "$code"

echo "vulncheck: the public database cannot be read; building it from its module" >&2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(
	cd "$tmp"
	go mod init vulncheck >/dev/null 2>&1
	go get golang.org/x/vulndb/cmd/indexdb@latest
	source=$(go list -m -f '{{.Dir}}' golang.org/x/vulndb)
	go run golang.org/x/vulndb/cmd/indexdb -vulns "$source/data/osv" -out db
)
"$check" -db "file://$tmp/db" "$@"
