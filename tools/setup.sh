#!/bin/bash
# tools/setup.sh - installs what building and testing need, on Debian 12. Called by the Makefile when a part's stamp is missing.
#
#   tools/setup.sh PART ...
#     build           compiler, libraries' headers
#     check           clang, clang-format, cppcheck
#     test            cmocka, strace and the like
#     venv            build/venv with tests/requirements.txt
#     minio           MinIO, built from source into the cache
#     prometheus      Debian 12's Prometheus and promtool, unpacked into the cache; not installed, so no service starts
#     prometheus-sid  the newer Prometheus of Debian sid, likewise
#     victoria-metrics  Debian 12's VictoriaMetrics, likewise: for make bench
#     kubernetes      a control plane for make test-kubernetes: Debian's etcd, unpacked into the cache; kube-apiserver, kube-controller-manager,
#                     kubectl and helm, built from source into it
#
# Debian packages are installed as root or with sudo; what is there is left alone, and a run that finds everything changes nothing.
# Everything else goes to build/ and to the cache: ${VARVE_CACHE:-$HOME/.cache/varve}. Packages of another Debian suite come from the
# mirror that this machine's own apt sources name, with that suite's name in place of this one's.
set -euo pipefail
cd "$(dirname "$0")/.."

CACHE=${VARVE_CACHE:-$HOME/.cache/varve}
MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
GO_MINIMUM=1.24
HELM_VERSION=v3.18.6
KUBERNETES_VERSION=$(sed -n 's/^require k8s.io\/kubernetes //p' tests/kubernetes/control-plane/go.mod)

BUILD_PACKAGES="gcc g++ make libc6-dev python3 protobuf-c-compiler libcrypt-dev libcurl4-openssl-dev libexpat1-dev libgnutls28-dev libisal-dev
	libjansson-dev liblz4-dev libmicrohttpd-dev libprotobuf-c-dev libre2-dev libsnappy-dev libsqlite3-dev libssl-dev libxxhash-dev
	libyaml-dev zlib1g-dev"
CHECK_PACKAGES="clang-14 clang-format-14 cppcheck libclang-rt-14-dev llvm-14"
TEST_PACKAGES="libcmocka-dev ca-certificates curl openssl strace sqlite3"
VENV_PACKAGES="python3-venv"

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

# Runs as root; -E keeps proxies and the like.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo -E "$@"
	else
		die "needs root for: $* (run that as root once, then again)"
	fi
}

# Another apt may hold its locks for a while: wait, it is not an error.
apt_get() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

missing_packages() {
	local have want
	have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p' | sort -u)
	for want in "$@"; do
		grep -qxF "$want" <<<"$have" || echo "$want"
	done
}

debian_packages() {
	command -v dpkg-query >/dev/null || die "no dpkg here: this script knows Debian 12; install the like of: $*"
	local missing
	missing=$(missing_packages "$@")
	[ -n "$missing" ] || return 0
	say "installing Debian packages:" $missing
	local log tries
	log=$(mktemp)
	for tries in 1 2 3; do
		if { apt_get update && apt_get install -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
			rm -f "$log"
			return 0
		fi
		sleep $((tries * 5))
	done
	tail -n 20 "$log" >&2
	rm -f "$log"
	die "could not install:" $missing
}

# "URI KEYRING" of this machine's Debian mirror, from whichever source names its own suite and main. KEYRING may be empty.
debian_mirror() {
	python3 - <<'PY'
import glob, os, re
codename = dict(l.rstrip().split("=", 1) for l in open("/etc/os-release") if "=" in l).get("VERSION_CODENAME", "").strip('"')
suites = {codename, "stable", "oldstable"}
for path in ["/etc/apt/sources.list"] + sorted(glob.glob("/etc/apt/sources.list.d/*")):
    if not os.path.isfile(path):
        continue
    text = open(path, errors="replace").read()
    if path.endswith(".sources"):
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(.*)$", stanza))
            if suites & set(fields.get("Suites", "").split()) and "main" in fields.get("Components", "") and "deb" in fields.get("Types", "").split():
                key = fields.get("Signed-By", "").strip()
                print(fields["URIs"].split()[0], key if key.startswith("/") else "")
                raise SystemExit
    else:
        for m in re.finditer(r"(?m)^deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)$", text):
            if m[3] in suites and "main" in m[4].split():
                key = re.search(r"signed-by=(\S+)", m[1] or "")
                print(m[2], key[1] if key else "")
                raise SystemExit
PY
}

# suite_unpack SUITE DIR PACKAGE ...: downloads packages of that suite and unpacks them into DIR. Needs no root; apt's own state of this
# machine is not touched, because lists and cache are in a directory of their own.
suite_unpack() {
	local suite=$1 dir=$2 uri key work list
	shift 2
	read -r uri key <<<"$(debian_mirror)" || true
	[ -n "${uri:-}" ] || die "found no Debian source in /etc/apt that names this machine's suite"
	work=$(mktemp -d)
	list=$work/sources.list
	mkdir -p "$work/lists/partial" "$work/archives/partial"
	echo "deb [${key:+signed-by=$key }arch=$(dpkg --print-architecture)] $uri $suite main" >"$list"
	local apt=(apt-get -q -o "Dir::Etc::sourcelist=$list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- -o Dir::Etc::preferences=-
		-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work" -o "Dir::Cache::archives=$work/archives"
		-o APT::Sandbox::User=root -o Acquire::Retries=3 -o Acquire::Languages=none
		-o Acquire::Check-Valid-Until=false) # a mirror that lags behind is good enough for tests; signatures are checked all the same
	if ! "${apt[@]}" update >"$work/log" 2>&1 || grep -q NO_PUBKEY "$work/log"; then
		tail -n 5 "$work/log" >&2
		rm -rf "$work"
		die "could not read the package lists of Debian $suite"
	fi
	(cd "$work" && "${apt[@]}" download "$@" >"$work/log" 2>&1) || { tail -n 5 "$work/log" >&2; rm -rf "$work"; die "could not download $* of Debian $suite"; }
	rm -rf "$dir.new"
	mkdir -p "$dir.new"
	local deb
	for deb in "$work"/*.deb; do
		dpkg -x "$deb" "$dir.new"
	done
	rm -rf "$work" "$dir"
	mv "$dir.new" "$dir"
}

# The path of a Go that is new enough: the machine's, or Debian trixie's unpacked into the cache.
find_go() {
	local go version
	for go in go "$CACHE/go/usr/lib/go-$GO_MINIMUM/bin/go"; do
		command -v "$go" >/dev/null || continue
		version=$(GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null | sed 's/^go//')
		if [ -n "$version" ] && [ "$(printf '%s\n' "$GO_MINIMUM" "$version" | sort -V | head -n 1)" = "$GO_MINIMUM" ]; then
			command -v "$go"
			return 0
		fi
	done
	return 1
}

setup_build() { debian_packages $BUILD_PACKAGES; }
setup_check() { debian_packages $CHECK_PACKAGES; }
setup_test() { debian_packages $TEST_PACKAGES; }

setup_venv() {
	# Debian splits venv off; a Python from elsewhere has it.
	python3 -c 'import ensurepip, venv' 2>/dev/null || debian_packages $VENV_PACKAGES
	local want
	want=$(sha256sum <tests/requirements.txt)
	[ "$(cat build/venv/.requirements 2>/dev/null)" = "$want" ] && return 0
	say "Python packages into build/venv"
	[ -x build/venv/bin/python ] || python3 -m venv --clear build/venv
	if ! build/venv/bin/python -m pip install --disable-pip-version-check -r tests/requirements.txt >build/venv/.log 2>&1; then
		tail -n 20 build/venv/.log >&2
		die "could not install the Python packages of tests/requirements.txt"
	fi
	echo "$want" >build/venv/.requirements
}

# find_go, after putting one into the cache when there is none.
need_go() {
	find_go && return 0
	say "Go $GO_MINIMUM of Debian trixie into $CACHE/go" >&2
	suite_unpack trixie "$CACHE/go" "golang-$GO_MINIMUM-go" "golang-$GO_MINIMUM-src"
	find_go || die "the Go that was unpacked into $CACHE/go does not run"
}

setup_minio() {
	[ -x "$CACHE/bin/minio" ] && return 0
	local go
	go=$(need_go)
	say "MinIO into $CACHE/bin, about two minutes"
	mkdir -p "$CACHE/bin"
	local work
	work=$(mktemp -d "$CACHE/bin/.build.XXXXXX")
	# Built beside its place and moved there, so that an interrupted build leaves nothing that looks whole.
	if ! GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN=$work "$go" install -trimpath "github.com/minio/minio@$MINIO_VERSION" >"$work/log" 2>&1; then
		tail -n 20 "$work/log" >&2
		rm -rf "$work"
		die "could not build MinIO"
	fi
	mv "$work/minio" "$CACHE/bin/minio"
	rm -rf "$work"
}

setup_prometheus() {
	command -v prometheus >/dev/null && command -v promtool >/dev/null && return 0
	[ -x "$CACHE/prometheus/usr/bin/prometheus" ] && return 0
	say "Prometheus of Debian $(. /etc/os-release && echo "$VERSION_CODENAME") into $CACHE/prometheus"
	suite_unpack "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$CACHE/prometheus" prometheus
}

setup_prometheus_sid() {
	[ -x "$CACHE/prometheus-sid/usr/bin/promtool" ] && [ -x "$CACHE/prometheus-sid/usr/bin/prometheus" ] && return 0
	say "Prometheus of Debian sid into $CACHE/prometheus-sid"
	suite_unpack sid "$CACHE/prometheus-sid" prometheus promtool
}

setup_victoria_metrics() {
	command -v victoria-metrics >/dev/null && return 0
	[ -x "$CACHE/victoria-metrics/usr/bin/victoria-metrics" ] && return 0
	say "VictoriaMetrics of Debian $(. /etc/os-release && echo "$VERSION_CODENAME") into $CACHE/victoria-metrics"
	suite_unpack "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$CACHE/victoria-metrics" victoria-metrics
}

setup_kubernetes() {
	local dir=$CACHE/kubernetes suite
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
	if [ ! -x "$dir/etcd/usr/bin/etcd" ]; then
		say "etcd of Debian $suite into $dir/etcd"
		mkdir -p "$dir"
		suite_unpack "$suite" "$dir/etcd" etcd-server
	fi
	[ "$(cat "$dir/bin/version" 2>/dev/null)" = "$KUBERNETES_VERSION $HELM_VERSION" ] && return 0
	local go work
	go=$(need_go)
	say "kube-apiserver, kube-controller-manager, kubectl $KUBERNETES_VERSION and helm into $dir/bin, about twelve minutes"
	work=$(mktemp -d "$CACHE/.build.XXXXXX")
	cp tests/kubernetes/control-plane/go.mod "$work/"
	if ! (cd "$work" && GOTOOLCHAIN=local CGO_ENABLED=0 "$go" build -mod=mod -trimpath -o bin/ \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$KUBERNETES_VERSION" \
		k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kubectl) >"$work/log" 2>&1 ||
		! GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN=$work/bin "$go" install -trimpath "helm.sh/helm/v3/cmd/helm@$HELM_VERSION" >"$work/log" 2>&1; then
		tail -n 20 "$work/log" >&2
		rm -rf "$work"
		die "could not build Kubernetes"
	fi
	echo "$KUBERNETES_VERSION $HELM_VERSION" >"$work/bin/version"
	rm -rf "$dir/bin"
	mv "$work/bin" "$dir/bin"
	rm -rf "$work"
}

[ $# -gt 0 ] || die "say which part: build check test venv minio prometheus prometheus-sid victoria-metrics kubernetes"
mkdir -p build "$CACHE"
for part in "$@"; do
	case $part in
	build | check | test | venv | minio | prometheus | kubernetes) "setup_$part" ;;
	prometheus-sid) setup_prometheus_sid ;;
	victoria-metrics) setup_victoria_metrics ;;
	*) die "no such part: $part" ;;
	esac
done
