#!/bin/sh
# make_workers.sh KIND...: builds environments of reward workers, .venv-metricx or .venv-xcomet, from their pinned requirements.
# What is up to date is left alone. The pins need Python 3.11 or 3.12: PYTHON may name one, else python3 is tried.
set -eu
cd "$(dirname "$0")/.."

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

find_python() {
    for candidate in "${PYTHON:-python3}" python3 python3.12 python3.11; do
        if fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "The reward workers need Python 3.11 or 3.12 (COMET holds numpy below 2); set PYTHON to one." >&2
    return 1
}

build() { # metricx or xcomet
    requirements=reward_workers/$1/requirements.txt
    folder=.venv-$1
    stamp=$folder/.built-from # a copy of the requirements, made when all of them were in
    log=.cache/build-$1.log
    if cmp -s "$requirements" "$stamp"; then
        return
    fi
    echo "Building $folder (output: $log) ..."
    mkdir -p .cache
    if ! fits "$folder/bin/python"; then
        rm -rf "$folder"
        "$python" -m venv "$folder"
    fi
    if ! { "$folder/bin/python" -m pip install --disable-pip-version-check -r "$requirements" &&
        "$folder/bin/python" -m pip check; } >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        echo "$folder could not be built" >&2
        return 1
    fi
    cp "$requirements" "$stamp"
}

python=$(find_python)
for kind in "$@"; do
    build "$kind"
done
