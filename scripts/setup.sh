#!/usr/bin/env bash
# Makes this machine ready: Debian packages for the desktops (where they can be installed) and Python packages in .venv.
# Safe to run again: what is there already is not touched. Prints what it does; fails with the reason and the fix.
#   PROVIDER=simulated   no desktops are wanted: Python packages only
set -euo pipefail
cd "$(dirname "$0")/.."

started=$SECONDS
say() { printf '[setup %4ds] %s\n' "$((SECONDS - started))" "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 2; }

# --- system packages ---------------------------------------------------------------------------------------------
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
can_be_root() {
    [ "$(id -u)" = 0 ] && return 0
    command -v sudo >/dev/null || return 1
    sudo -n true 2>/dev/null && return 0
    [ -t 0 ] && sudo -v
}
missing_packages() {
    local line name
    while read -r line; do
        case "$line" in '' | '#'*) continue ;; esac
        name=${line%\?}
        dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' && continue
        printf '%s\n' "$line"
    done < <(cat scripts/apt-packages.txt scripts/apt-packages-qemu.txt)
}
# Optional packages (`name?`) that the distribution does not have, or has only as a snap, are dropped from the list.
installable() {
    local line name
    while read -r line; do
        name=${line%\?}
        if [ "$name" != "$line" ]; then
            # grep reads to the end: with -q it stops early, and under pipefail the broken pipe would read as "not there"
            apt-cache show --no-all-versions "$name" 2>/dev/null | grep '^Package:' >/dev/null || continue
            apt-cache depends "$name" 2>/dev/null | grep snapd >/dev/null && continue
        fi
        printf '%s\n' "$name"
    done
}
install_system_packages() {
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here (not Debian or Ubuntu): real desktops are not set up; the simulated provider works everywhere"
        return 0
    fi
    local missing wanted
    missing=$(missing_packages)
    if [ -z "$(printf '%s' "$missing" | grep -v '?$' || true)" ] && { [ -z "$missing" ] || [ -e .cache/apt-optional-tried ]; }; then
        say "system packages: all there"
        return 0
    fi
    if ! can_be_root; then
        say "system packages missing and neither root nor sudo: $(printf '%s' "$missing" | tr '\n' ' ')"
        say "real desktops are not set up; the simulated provider works without them"
        return 0
    fi
    say "apt-get update"
    as_root apt-get update -qq || say "apt-get update failed; going on with the package lists that are there"
    mapfile -t wanted < <(printf '%s\n' "$missing" | installable)
    mkdir -p .cache && touch .cache/apt-optional-tried
    [ "${#wanted[@]}" -gt 0 ] || return 0
    say "installing ${#wanted[@]} system packages: ${wanted[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Use-Pty=0 "${wanted[@]}" >.cache/apt.log 2>&1 ||
        { tail -n 5 .cache/apt.log >&2; die "apt-get install failed (.cache/apt.log has all of it)"; }
    say "system packages installed"
}

# The tests of `arpo tunnel` need a real sshd. It is unpacked, not installed: a test must not make this machine one that
# people can log in to.
unpack_sshd() {
    [ -x /usr/sbin/sshd ] || [ -x .cache/openssh-server/usr/sbin/sshd ] && return 0
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 0
    local folder=.cache/openssh-server.new package
    rm -rf "$folder" && mkdir -p "$folder"
    for package in openssh-server libwrap0; do
        (cd "$folder" && apt-get download -qq "$package" >/dev/null 2>&1) || continue
    done
    for package in "$folder"/*.deb; do
        [ -e "$package" ] || continue
        dpkg -x "$package" "$folder" && rm "$package"
    done
    if [ -x "$folder/usr/sbin/sshd" ]; then
        rm -rf .cache/openssh-server && mv "$folder" .cache/openssh-server
        say "sshd unpacked for the tests"
    else
        rm -rf "$folder"
        say "sshd could not be downloaded; the tests of the tunnel will be skipped"
    fi
}

# --- Python ------------------------------------------------------------------------------------------------------
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
        printf '%s\n' "$candidate"
        return 0
    done
    return 1
}
make_venv() {
    local python=$1
    [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 && return 0
    rm -rf .venv
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        can_be_root && command -v apt-get >/dev/null || die "$python has no venv module; fix: apt-get install python3-venv"
        say "installing python3-venv"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
}
install_python_packages() {
    local stamp=.venv/.arpo-setup fingerprint index=()
    fingerprint=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum | tr ' ' '-')-$PWD # cksum: on every system
    if [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
        say "Python packages: all there"
        return 0
    fi
    # Without an NVIDIA GPU the CPU build of torch saves gigabytes; it wins over the default build where its index answers.
    if ! command -v nvidia-smi >/dev/null && [ "$(uname -s)" = Linux ] && command -v curl >/dev/null &&
        curl -fsIm 5 -o /dev/null https://download.pytorch.org/whl/cpu/torch/ 2>/dev/null; then
        index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    fi
    say "installing Python packages into .venv (torch, transformers, fastapi, ...: about a minute)"
    .venv/bin/python -m pip install -q --disable-pip-version-check ${index[@]+"${index[@]}"} -c constraints.txt \
        -e '.[env-server,train,dev]' || die "pip install failed; its message is above"
    # desktop-env's own metadata pins numpy<2 and pulls 3.2 GB; its light dependencies are in the env-server extra.
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt desktop-env ||
        die "pip install --no-deps desktop-env failed; its message is above"
    printf '%s\n' "$fingerprint" >"$stamp"
    say "Python packages installed"
}

if [ "${PROVIDER:-}" != simulated ]; then
    install_system_packages
    unpack_sshd
fi
python=$(find_python) || die "no Python 3.11 to 3.13 found; fix: apt-get install python3 (or set PYTHON=/path/to/python3.11)"
make_venv "$python"
install_python_packages
# where PYTHONDONTWRITEBYTECODE is set, every process would compile our modules again
.venv/bin/python -m compileall -q src
[ "${PROVIDER:-}" = simulated ] || bash scripts/setup_helm.sh || say "helm is not set up: the chart's tests will be skipped"
