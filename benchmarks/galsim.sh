#!/usr/bin/env bash
# make sky-tables: GalSim, beside .venv in a folder of the cache; and source-extractor, where it may be installed.
# Prints the folder.

cd "$(dirname "$0")/.."
. install/common.sh
folder=${CACHE:-.cache}/galsim
pins=(galsim==2.8.5 lsstdesc.coord==1.3.1 future==1.0.0)
if [ "$(cat "$folder/.installed" 2>/dev/null)" != "${pins[*]}" ]; then
    rm -rf "$folder"
    .venv/bin/pip install -qq --no-deps --only-binary :all: --target "$folder" "${pins[@]}"
    echo "${pins[*]}" >"$folder/.installed"
fi
command -v source-extractor >/dev/null || (may_install_packages && install_packages source-extractor) ||
    say "source-extractor is not here: its columns stay empty" >&2
echo "$folder"
