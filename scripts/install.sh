#!/usr/bin/env bash
# Puts Keyfleet on this server as a systemd service: programs in /usr/local/bin, configuration in /etc/keyfleet. Looks at
# everything before it changes anything. Run it again for another version; what you changed in /etc/keyfleet stays.
#   sudo scripts/install.sh                    builds this source
#   sudo ./install.sh                          in a release that was unpacked: takes what lies beside it
#   sudo bash install.sh --version 0.1.0       takes a release, and checks its checksum; needs nothing but this file
#   sudo bash install.sh --from FILE.tar.gz    the same from an archive, with SHA256SUMS beside it
#   sudo bash install.sh --uninstall           leaves configuration and state; with --purge takes those as well
#   --prefix DIR   programs in DIR/bin          --root DIR   into another root, DESTDIR as well; nothing is started
#   --dry-run      only looks and tells         --no-start   starts nothing
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RELEASES=${KEYFLEET_RELEASES:-https://github.com/keyfleet/keyfleet/releases/download}
# LoadCredential= is as old.
SYSTEMD=247
# Both programs twice, since the old ones stay until the new ones are there.
NEEDED_KIB=262144
PORT=4806
PROGRAMS=(gateway coordinator)
CREDENTIALS=(gemini-api-keys client-token admin-token redis-url nats-url)

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}
say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

problems=()
problem() { problems+=("$*"); }
# Every mistake at once, and nothing has been changed yet.
stop_at_problems() {
    if [ ${#problems[@]} = 0 ]; then return; fi
    printf 'error: %s\n' "${problems[@]}" >&2
    echo "Nothing was changed." >&2
    exit 1
}

prefix=/usr/local root=${DESTDIR:-} version='' from='' action=install purge=false dry=false start=true
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --root | --version | --from)
        [ $# -ge 2 ] || fail "$1 needs a value"
        declare "${1#--}=$2"
        shift
        ;;
    --uninstall) action=uninstall ;;
    --purge) purge=true ;;
    --dry-run) dry=true ;;
    --no-start) start=false ;;
    -h | --help)
        usage
        exit
        ;;
    *) fail "unknown option $1; see --help" ;;
    esac
    shift
done
[ -z "$version" ] || [ -z "$from" ] || fail "--version and --from exclude each other"
[[ $version =~ ^v?[0-9A-Za-z.+-]*$ ]] || fail "--version: not a version: $version"
version=${version#v}
case $prefix in
/*) prefix=${prefix%/} ;;
*) fail "--prefix: give a path from /" ;;
esac
# It stands in a unit, where these mean something.
[[ $prefix =~ ^[A-Za-z0-9/._+-]*$ ]] || fail "--prefix: only letters, digits and ./_+- are possible"
if [ -n "$root" ]; then
    [ -d "$root" ] || fail "--root: there is no folder $root"
    root=$(cd "$root" && pwd)
    root=${root%/}
    start=false
fi
bin=$root$prefix/bin
units=$root/etc/systemd/system
etc=$root/etc/keyfleet
credentials=$etc/credentials

# Shows what is done, or would be.
run() {
    if $dry; then
        say "would run: $*"
    else
        "$@"
    fi
}

systemd_runs() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
is_active() { systemd_runs && systemctl is-active --quiet "keyfleet-$1"; }

check_system() {
    [ "$(uname -s)" = Linux ] || problem "this is for Linux with systemd; elsewhere use a container"
    if [ -z "$root" ]; then
        [ "$(id -u)" = 0 ] || problem "it writes to /etc and $prefix: run it as root, with sudo"
        if ! systemd_runs; then
            problem "systemd does not run here: use --root DIR, scripts/run, or a container"
        elif found=$(systemctl --version | awk 'NR == 1 { print int($2) }') && [ "$found" -lt $SYSTEMD ]; then
            problem "systemd is $found, and $SYSTEMD or newer is needed"
        fi
    fi
}

# remove FILE...
remove() {
    local file
    for file in "$@"; do
        if [ -e "$file" ] || [ -L "$file" ]; then
            run rm -rf -- "$file"
            $dry || say "removed    $file"
        fi
    done
}

uninstall() {
    local name unit file
    check_system
    stop_at_problems
    for name in "${PROGRAMS[@]}"; do
        unit=$units/keyfleet-$name.service
        file=$bin/keyfleet-$name
        # Where it really is, whatever --prefix says today.
        if [ -f "$unit" ]; then file=$root$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$unit"); fi
        if systemd_runs && [ -f "$unit" ]; then run systemctl disable --now "keyfleet-$name"; fi
        remove "$unit" "$units/multi-user.target.wants/keyfleet-$name.service" "$file"
    done
    if systemd_runs; then run systemctl daemon-reload; fi
    if $purge; then
        remove "$etc" "$units"/keyfleet-{gateway,coordinator}.service.d \
            "$root"/var/lib/{private/,}keyfleet-gateway
    elif [ -d "$etc" ]; then
        say "Kept: $etc, and the state in /var/lib. To remove these too: $0 --uninstall --purge"
    fi
}

check_tools() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || problem "$tool is missing: install it"
    done
}

check_disk() {
    local folder=$bin free
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
    if [ "$free" -lt $NEEDED_KIB ]; then
        problem "$folder has $((free / 1024)) MiB left, and $((NEEDED_KIB / 1024)) are needed"
    fi
}

# Only a new configuration has a port that nobody chose.
check_port() {
    if [ -e "$etc/config.yaml" ] || is_active gateway; then return; fi
    if (exec 3<>/dev/tcp/127.0.0.1/$PORT) 2>/dev/null; then
        if [ -z "$root" ]; then
            problem "something listens on port $PORT already: see \`ss -ltnp\`; stop it, or put a config.yaml with" \
                "another server.port into $etc first"
        else
            say "warning: something listens on port $PORT of this machine: is it free where this root will run?"
        fi
    fi
}

fetch() {
    if command -v curl >/dev/null; then
        curl -fsSL --retry 3 --max-time 600 -o "$2" "$1"
    else
        wget -q --tries=3 -O "$2" "$1"
    fi
}

# take FOLDER: the programs and the units of a release, which belong together, into $scratch.
take() {
    local name
    for name in "${PROGRAMS[@]}" systemd; do
        if [ -e "$1/$name" ]; then cp -R "$1/$name" "$scratch/$name"; else problem "this release holds no $name"; fi
    done
}

# unpack ARCHIVE SUMS: takes what is in it, if its checksum is right.
unpack() {
    local archive=$1 sums=$2 name sum wanted
    name=$(basename "$archive")
    wanted=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1 }' "$sums")
    [[ $wanted =~ ^[0-9a-f]{64}$ ]] || { problem "$sums does not name $name once" && return; }
    sum=$(sha256sum "$archive" | awk '{ print $1 }')
    if [ "$sum" != "$wanted" ]; then
        problem "$name is not what was released: its SHA-256 is $sum, and $wanted is wanted; download it again"
        return
    fi
    mkdir "$scratch/unpacked"
    tar -xzf "$archive" -C "$scratch/unpacked" --strip-components 1 --no-same-owner
    take "$scratch/unpacked"
}

release() {
    local machine archive
    case $(uname -m) in
    x86_64) machine=amd64 ;;
    aarch64 | arm64) machine=arm64 ;;
    *)
        problem "there is no release for $(uname -m): build the source, without --version"
        return
        ;;
    esac
    command -v curl >/dev/null || command -v wget >/dev/null || { problem "curl or wget is missing" && return; }
    archive=keyfleet-$version-linux-$machine.tar.gz
    for file in "$archive" SHA256SUMS; do
        if ! fetch "$RELEASES/v$version/$file" "$scratch/$file"; then
            problem "cannot download $RELEASES/v$version/$file: is there a version $version?"
            return
        fi
    done
    unpack "$scratch/$archive" "$scratch/SHA256SUMS"
}

# As whoever called sudo: root has no Rust, and should own nothing in target.
build() {
    local command="cd '$here/..' && PATH=\$HOME/.cargo/bin:\$PATH && cargo build --release --locked"
    local target
    for program in "${PROGRAMS[@]}"; do command+=" --package $program"; done
    say "Building; the first time takes some minutes."
    if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
        sudo -H -u "$SUDO_USER" bash -c "$command" || fail "the build failed; nothing was changed"
    else
        bash -c "$command" || fail "the build failed; nothing was changed"
    fi
    target=${CARGO_TARGET_DIR:-$here/../target}/release
    # As released: without the numbers of lines, which are three quarters of it.
    for program in "${PROGRAMS[@]}"; do strip --strip-debug -o "$scratch/$program" "$target/$program"; done
}

# The programs and units that are to be installed, in $scratch.
obtain() {
    if [ -n "$version" ]; then
        release
    elif [ -n "$from" ]; then
        if [ ! -f "$from" ]; then
            problem "--from: there is no file $from"
        elif [ ! -f "$(dirname "$from")/SHA256SUMS" ]; then
            problem "--from: SHA256SUMS is missing beside $from: download it too"
        else
            unpack "$from" "$(dirname "$from")/SHA256SUMS"
        fi
    elif [ -f "$here/gateway" ]; then
        take "$here"
    elif [ ! -f "$here/../Cargo.toml" ]; then
        problem "there is no release in $here, and no source around it: give --version or --from"
    else
        check_tools strip
        stop_at_problems
        cp -R "$here/systemd" "$scratch/systemd"
        if $dry; then say "would build the source in $(cd "$here/.." && pwd)"; else build; fi
    fi
}

accepts() { (cd / && CREDENTIALS_DIRECTORY=$credentials "$1" check-config -c "$etc/config.yaml" 2>&1); }

# That they run here, and with the configuration that is there, unless that is not finished anyway.
check_programs() {
    local program said installed=$bin/keyfleet-gateway
    if [ ! -f "$scratch/gateway" ] || [ ! -f "$scratch/coordinator" ]; then return; fi
    for program in "${PROGRAMS[@]}"; do
        chmod 755 "$scratch/$program"
        said=$("$scratch/$program" version 2>&1) || problem "the $program does not run on this machine: $said"
    done
    if [ ${#problems[@]} = 0 ] && [ -f "$etc/config.yaml" ]; then
        if said=$(accepts "$scratch/gateway"); then return; fi
        if [ -x "$installed" ] && ! accepts "$installed" >/dev/null; then
            say "warning: $said"
        else
            problem "this version refuses the configuration that is there: $said"
        fi
    fi
}

changed=false
# put MODE FROM TO: as a whole, so that nobody sees a half of it; nothing if it is the same already.
put() {
    if cmp -s "$2" "$3"; then
        say "unchanged  $3"
        return
    fi
    changed=true
    if $dry; then
        say "would put  $3"
        return
    fi
    install -D -m "$1" "$2" "$3.new"
    mv -f "$3.new" "$3"
    say "installed  $3"
}

# Credentials that are there stay as they are.
put_credentials() {
    local name
    run install -d -m 755 "$etc"
    run install -d -m 700 "$credentials"
    for name in "${CREDENTIALS[@]}"; do
        if [ -e "$credentials/$name" ]; then continue; fi
        if $dry; then
            say "would make $credentials/$name"
            continue
        fi
        (
            umask 077
            if [ "$name" = client-token ]; then
                od -An -N 24 -t x1 /dev/urandom | tr -d ' \n' >"$credentials/$name"
            else
                : >"$credentials/$name"
            fi
        )
        say "made       $credentials/$name"
    done
}

put_all() {
    local name
    for name in "${PROGRAMS[@]}"; do
        if [ -f "$scratch/$name" ]; then put 755 "$scratch/$name" "$bin/keyfleet-$name"; fi
        sed "s|/usr/local/bin/|$prefix/bin/|" "$scratch/systemd/keyfleet-$name.service" >"$scratch/unit"
        put 644 "$scratch/unit" "$units/keyfleet-$name.service"
    done
    put_credentials
    if [ -e "$etc/config.yaml" ]; then
        say "kept       $etc/config.yaml"
    else
        put 644 "$scratch/systemd/config.yaml" "$etc/config.yaml"
    fi
}

# An option of the configuration in force.
option() {
    (cd / && CREDENTIALS_DIRECTORY=$credentials "$bin/keyfleet-gateway" print-config -c "$etc/config.yaml") |
        awk -v name="$1:" '/^[a-z]/ { section = $1 } section == "server:" && $1 == name { gsub(/"/, "", $2); print $2; exit }'
}

smoke() {
    local host token=$credentials/client-token ops
    local arguments=()
    host=$(option host)
    case $host in
    0.0.0.0) host=127.0.0.1 ;;
    ::) host='[::1]' ;;
    *:*) host="[$host]" ;;
    esac
    ops=$(option ops_port)
    if [[ $ops =~ ^[0-9]+$ ]]; then arguments=(--ops-url "http://$host:$ops"); fi
    if [ ! -s "$token" ]; then token=''; fi
    KEYFLEET_SMOKE_TOKEN_FILE=$token "$bin/keyfleet-gateway" smoke "http://$host:$(option port)" "${arguments[@]}"
}

start_services() {
    local name
    systemctl daemon-reload
    for name in "${PROGRAMS[@]}"; do
        if is_active "$name" && $changed; then
            say "Starting keyfleet-$name again: requests that run may end first."
            systemctl restart "keyfleet-$name"
        fi
    done
    if ! is_active gateway; then
        if [ ! -s "$credentials/gemini-api-keys" ] && cmp -s "$scratch/systemd/config.yaml" "$etc/config.yaml"; then
            next_steps
            return
        fi
        systemctl enable --now keyfleet-gateway ||
            fail "it does not start; \`journalctl -u keyfleet-gateway -n 20\` says why"
    fi
    say
    smoke || fail "it is installed and runs, but something is wrong with it: see above"
    say
    say "Keyfleet runs. Clients' token: sudo cat $credentials/client-token   Log: journalctl -fu keyfleet-gateway"
}

# As they are for whoever runs what is in the root.
next_steps() {
    cat <<TEXT

Installed. Next, give it your Gemini API keys, start it, and see whether it serves:

  sudo tee /etc/keyfleet/credentials/gemini-api-keys >/dev/null    # paste your keys, one per line, then Enter and Ctrl-D
  sudo systemctl enable --now keyfleet-gateway
  sudo KEYFLEET_SMOKE_TOKEN_FILE=/etc/keyfleet/credentials/client-token $prefix/bin/keyfleet-gateway smoke http://127.0.0.1:$PORT
TEXT
}

if [ "$action" = uninstall ]; then
    uninstall
    exit
fi
if $purge; then fail "--purge goes with --uninstall"; fi
scratch=$(mktemp -d)
trap 'rm -rf "${scratch:?}"' EXIT
check_system
check_tools tar sha256sum install awk cmp od
check_disk
check_port
stop_at_problems
obtain
check_programs
stop_at_problems
put_all
if $dry; then
    say "Nothing was changed."
elif $start; then
    start_services
else
    next_steps
fi
