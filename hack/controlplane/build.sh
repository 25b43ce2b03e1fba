#!/bin/sh
# Builds etcd, kube-apiserver and kube-controller-manager from the Go modules
# that go.mod names, once per pair of versions, and prints the directory that
# holds them. KUBEBUILDER_ASSETS, where set, is printed instead: the user's
# binaries win.
#
#   KUBEBUILDER_ASSETS=$(hack/controlplane/build.sh) go test ./...
#
# --dir prints the directory without building anything.
set -eu

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
	printf '%s\n' "$KUBEBUILDER_ASSETS"
	exit 0
fi

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)

# version MODULE prints the version that go.mod requires of it.
version() {
	awk -v module="$1" '$1 == module { print $2; exit }' "$here/go.mod"
}
kubernetes=$(version k8s.io/kubernetes)
etcd=$(version go.etcd.io/etcd/server/v3)
if [ -z "$kubernetes" ] || [ -z "$etcd" ]; then
	echo "build.sh: $here/go.mod names no version of k8s.io/kubernetes or go.etcd.io/etcd/server/v3" >&2
	exit 1
fi

dir=$root/bin/controlplane/$kubernetes-$etcd
if [ "${1:-}" = --dir ]; then
	printf '%s\n' "$dir"
	exit 0
fi

# kube-controller-manager is linked last: where it is, the rest is complete.
if [ ! -x "$dir/kube-controller-manager" ]; then
	echo "build.sh: building kube-apiserver $kubernetes and etcd $etcd into $dir (once; some minutes)" >&2
	mkdir -p "$dir"
	binary=$(mktemp "$dir/.controlplane.XXXXXX")
	trap 'rm -f "$binary"' EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM

	# Clients ask /version and clusters log it, so the binaries name their
	# release as the official ones do.
	set_version() { printf ' -X k8s.io/component-base/version.%s=%s' "$1" "$2"; }
	minor=${kubernetes#v1.}
	minor=${minor%%.*}
	flags="-s -w$(set_version gitVersion "$kubernetes")$(set_version gitMajor 1)$(set_version gitMinor "$minor")$(set_version gitTreeState clean)"
	# The module stands alone: a workspace or flags of the caller's must not
	# change what is built.
	(cd "$here" && GOWORK=off GOFLAGS= CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags "$flags" -o "$binary" .) >&2

	chmod 0755 "$binary"
	for name in etcd kube-apiserver kube-controller-manager; do
		ln -f "$binary" "$dir/$name"
	done
fi
printf '%s\n' "$dir"
