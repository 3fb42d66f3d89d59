#!/bin/bash
# grpo-math for a machine without network: packed here, in pieces with checksums, installed there.
#
#   scripts/offline_bundle.sh pack OUT [option ...]
#     --python 3.12                          the target's Python (default: that of `python3` here)
#     --platform manylinux_2_28_x86_64       its platform, no newer than its glibc (this is the default)
#     --without NAME[==VERSION]              a package that the target has, in this version; several are possible
#     --with REQUIREMENT                     a further package: vllm, or vllm==0.26.0 with --without torch==2.11.0
#     --model DIR, --data DIR                to be models/NAME and data there
#     --size 55M                             of a piece, at most
#
#   bash PIECES/offline_bundle.sh install PIECES DEST
#
# PIECES is the folder with everything that OUT has. DEST, a new folder, gets the project, models/, data/, and .venv on
# top of the packages of PYTHON (default: python3), which may itself be that of a virtual environment.
# Exit status: 2 for a mistake or for pieces that are missing or damaged; 1 where an installed project lacks packages.
set -eu -o pipefail
PYTHON=${PYTHON:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() { echo "error: $*" >&2; exit 2; }
say() { echo "$(date +%T) $*"; }
version() { "$PYTHON" -c "import sys; print('%d.%d' % sys.version_info[:2])" || fail "PYTHON=$PYTHON does not run"; }

# The requirements, the constraints and a stand-in without content for each package that the target has: pip resolves
# against the stand-ins, so that it fetches neither these packages nor what only they require.
# Arguments: project, folder, then the words of --without and of --with, separated by --
plan() {
    "$PYTHON" - "$@" << 'END'
import re, sys, tomllib
from pathlib import Path
from zipfile import ZipFile
project, folder = map(Path, sys.argv[1:3])
middle = sys.argv.index("--")
without, more = sys.argv[3:middle], sys.argv[middle + 1 :]
def name_of(line):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
pins = {name_of(line): line.strip() for line in (project / "constraints.txt").open() if "==" in line}
for word in without:
    name, _, version = word.partition("==")
    version = version or pins.get(name_of(name), "").partition("==")[2]
    if not version:
        sys.exit(f"error: --without {word}: constraints.txt has no version of it: give {word}==VERSION, the target's")
    pins[name_of(name)] = f"{name}=={version}+left.out"
    stem = f"{name_of(name).replace('-', '_')}-{version}+left.out"
    with ZipFile(folder / "left_out" / f"{stem}-py3-none-any.whl", "w") as wheel:
        info = f"{stem}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}+left.out\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
required = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
there, named = set(map(name_of, without)), {name_of(word) for word in more if name_of(word) != word}
lines = [line for line in required if name_of(line) not in there]
(folder / "requirements.txt").write_text("\n".join([*lines, *more, "pip"]))
(folder / "constraints.txt").write_text("\n".join(line for name, line in pins.items() if name not in named))
END
}

pack() {
    local out=$1 root python platform=manylinux_2_28_x86_64 model="" data="" size=55M without=() more=()
    local work tags=() minor
    root=$(cd "$(dirname "$0")/.." && pwd)
    shift
    python=$(version)
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] || fail "$1: give a value"
        case $1 in
            --python) python=$2 ;; --platform) platform=$2 ;; --size) size=$2 ;; --model) model=$2 ;; --data) data=$2 ;;
            --without) without+=("$2") ;; --with) more+=("$2") ;;
            *) fail "$1: unknown option; see the beginning of $0" ;;
        esac
        shift 2
    done
    [[ $size =~ ^[1-9][0-9]*[KMG]?$ ]] || fail "--size $size: give bytes, or a number with K, M or G, such as 55M"
    [[ $python =~ ^3\.[0-9]+$ ]] || fail "--python $python: give a version such as 3.12"
    [[ $platform =~ ^manylinux_2_([0-9]+)_(.*)$ ]] || fail "--platform $platform: give one like manylinux_2_28_x86_64"
    for minor in $(seq "${BASH_REMATCH[1]}" -1 5); do tags+=("--platform=manylinux_2_${minor}_${BASH_REMATCH[2]}"); done
    tags+=("--platform=manylinux2014_${BASH_REMATCH[2]}")    # pip wants every platform by its name
    [ -z "$model" ] || [ -f "$model/config.json" ] || fail "--model $model: no folder with a config.json"
    [ -z "$data" ] || [ -d "$data" ] || fail "--data $data: no such folder"
    [ ! -e "$out" ] || [ -z "$(ls -A "$out")" ] || fail "$out is not empty: give a new folder"
    mkdir -p "$out"
    work=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    mkdir -p "$work/left_out" "$work/bundle/wheels" "$work/bundle/models"

    plan "$root" "$work" ${without[@]+"${without[@]}"} -- ${more[@]+"${more[@]}"} || exit 2
    say "downloading for Python $python, $platform"
    "$PYTHON" -m pip download --quiet --only-binary=:all: --implementation cp --python-version "$python" "${tags[@]}" \
        --find-links "$work/left_out" -c "$work/constraints.txt" -r "$work/requirements.txt" -d "$work/bundle/wheels"
    rm -f "$work"/bundle/wheels/*+left.out-*.whl
    (cd "$root" && git ls-files | while read -r file; do [ ! -f "$file" ] || cp --parents "$file" "$work/bundle"; done)
    git -C "$root" describe --always --dirty > "$work/bundle/REVISION"
    [ -z "$model" ] || ln -s "$(realpath "$model")" "$work/bundle/models/"
    [ -z "$data" ] || ln -s "$(realpath "$data")" "$work/bundle/data"
    say "packing $(find "$work" -name '*.whl' | grep -vc left.out) wheels, the project${model:+, $model}${data:+, $data}"
    tar --dereference -C "$work/bundle" -c . | gzip -1 | split -b "$size" -d -a 3 - "$out/piece-"
    cp "$0" "$out/offline_bundle.sh"
    echo "$python $platform $(cat "$work/bundle/REVISION")" > "$out/TARGET"
    (cd "$out" && sha256sum -- * > "$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
    say "$out: $(find "$out" -name 'piece-*' | wc -l) pieces, $(du -sh "$out" | cut -f 1)"
    echo "next, there: bash PIECES/offline_bundle.sh install PIECES DEST"
}

install() {
    local pieces=$1 dest=$2 listed missing=() damaged python file site
    [ -f "$pieces/SHA256SUMS" ] || fail "$pieces/SHA256SUMS is missing: carry it with the pieces"
    listed=$(cut -c 67- "$pieces/SHA256SUMS")
    for file in $listed; do [ -f "$pieces/$file" ] || missing+=("$file"); done
    [ ${#missing[@]} = 0 ] || fail "missing in $pieces: ${missing[*]}"
    damaged=$(cd "$pieces" && sha256sum --quiet -c SHA256SUMS 2> /dev/null | cut -d : -f 1 | paste -sd ' ') || true
    [ -z "$damaged" ] || fail "damaged in $pieces, carry again: $damaged"
    python=$(cut -d ' ' -f 1 "$pieces/TARGET")
    [ "$(version)" = "$python" ] || fail "the bundle is for Python $python, PYTHON=$PYTHON is $(version)"
    [ ! -e "$dest" ] || [ -z "$(ls -A "$dest")" ] || fail "$dest is not empty: give a new folder"
    mkdir -p "$dest"
    (cd "$pieces" && grep '^piece-' <<< "$listed" | xargs cat) | tar -C "$dest" -xz
    dest=$(realpath "$dest")
    say "the sums are right, unpacked into $dest"

    "$PYTHON" -m venv --without-pip "$dest/.venv"
    site=$("$dest/.venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    # A venv made by a venv's Python sees the packages of neither. Their .pth files count too.
    "$PYTHON" - > "$site/zz_below.pth" << 'END'
import os, sys
for path in map(os.path.abspath, sys.path):
    if path.endswith(("site-packages", "dist-packages")):
        print(f"import site; site.addsitedir({path!r})")
END
    echo "$dest/src" > "$site/grpo_math.pth"
    printf '#!/bin/sh\nexec "%s/.venv/bin/python" -m grpo_math "$@"\n' "$dest" > "$dest/.venv/bin/grpo-math"
    chmod +x "$dest/.venv/bin/grpo-math"
    PYTHONPATH=$(echo "$dest"/wheels/pip-*.whl) "$dest/.venv/bin/python" -m pip install --quiet --no-index --no-deps \
        --no-cache-dir --no-compile --ignore-installed "$dest"/wheels/*.whl
    rm -r "$dest/wheels"
    say "installed into $dest"
    mapfile -t missing < <("$dest/.venv/bin/python" "$dest/scripts/missing.py")
    if [ ${#missing[@]} != 0 ]; then
        printf -v listed '%s, ' "${missing[@]}"
        echo "error: neither in the bundle nor in PYTHON=$PYTHON: ${listed%, }" >&2
        exit 1
    fi
    echo "next: cd $dest && .venv/bin/grpo-math quickstart"
    file=$(ls "$dest/models")
    [ -z "$file" ] || [ ! -d "$dest/data/gsm8k" ] || echo "or: benchmarks/gpu.sh models/$file data"
}

case "${1:-} $#" in
    "pack "[2-9] | "pack "[1-9][0-9]) pack "${@:2}" ;;
    "install 3") install "$2" "$3" ;;
    *) fail "usage: offline_bundle.sh pack OUT [option ...] (its beginning lists them), or install PIECES DEST" ;;
esac
