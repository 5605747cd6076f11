#!/usr/bin/env bash
# make bench-systems: .venv-bench, with mpiimg and every peer that can be had here. One that cannot is named and left out.
#
# Versions are those of constraints.txt, and for what only the peers need of benchmarks/constraints.txt.

cd "$(dirname "$0")/.."
. install/common.sh
. install/venv.sh
VENV=.venv-bench
PEERS=("dask[array,distributed]" pyspark tensorflow-cpu tiledb ccdproc reproject cubed)

digest=$(cat pyproject.toml setup.py constraints.txt benchmarks/constraints.txt benchmarks/install.sh | sha256sum | cut -d' ' -f1)
ensure_venv $VENV
if [ ! -e $VENV/.installed ] || [ "$(cat $VENV/.installed)" != "$digest" ]; then
    pinned=(-c constraints.txt -c benchmarks/constraints.txt)
    say "installing mpiimg and its peers into $VENV: about two gigabytes, some minutes"
    $VENV/bin/python -m pip install -qq --only-binary :all: -c constraints.txt pip setuptools wheel
    $VENV/bin/pip install -qq --only-binary :all: --no-build-isolation --use-pep517 "${pinned[@]}" -e ".[mpich,all,test]"
    lacking=()
    for peer in "${PEERS[@]}"; do
        # pyspark has no wheel: it is Python and jars, and needs no compiler.
        $VENV/bin/pip install -qq --prefer-binary --no-build-isolation "${pinned[@]}" "$peer" || lacking+=("$peer")
    done
    command -v java >/dev/null || (may_install_packages && install_packages openjdk-17-jre-headless) || lacking+=(java)
    [ ${#lacking[@]} = 0 ] || say "not installed, and so not in the tables: ${lacking[*]}"
    echo "$digest" >$VENV/.installed
fi
