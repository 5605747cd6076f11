#!/usr/bin/env bash
# All that an install needs, in one folder, to carry to a machine without a network.
#
#   install/wheelhouse.sh FOLDER        download what install/lock.txt names, and nothing else
#   install/wheelhouse.sh lock          download anew what constraints.txt names, and write install/lock.txt
#
# It needs .venv (make install).

cd "$(dirname "$0")/.."
. install/common.sh

# Built against the MPI and HDF5 of a site, so taken as source too.
SOURCES=(mpi4py h5py)

# download FOLDER [OPTIONS]: wheels of the project and of what builds it, and the sources.
download() {
    local folder=$1 requirements=(-c constraints.txt ".[mpich,all,docs,test]" pip setuptools wheel cython pkgconfig)
    [ "$2" = any ] || requirements=(--require-hashes --no-deps -r "$2")
    .venv/bin/pip download -qq --only-binary :all: --no-build-isolation -d "$folder" "${requirements[@]}"
    # pip looks into a source archive by running its build, which wants these.
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT
    .venv/bin/python -m venv "$tools"
    "$tools/bin/pip" install -qq -U --no-index --find-links "$folder" setuptools wheel cython pkgconfig numpy mpi4py
    "$tools/bin/pip" download -qq --no-deps --no-build-isolation --no-binary "$(IFS=,; echo "${SOURCES[*]}")" \
        -c constraints.txt -d "$folder" "${SOURCES[@]}"
}

[ -x .venv/bin/pip ] || fail "no .venv: run make install first"
case "${1:-}" in
"") fail "name a folder" ;;
lock)
    fresh=$(mktemp -d)
    download "$fresh" any
    .venv/bin/python install/lock.py "$fresh" >install/lock.txt
    rm -rf "$fresh"
    ;;
*)
    download "$1" install/lock.txt
    .venv/bin/python install/lock.py "$1" | diff install/lock.txt - >/dev/null ||
        fail "$1 holds other files than install/lock.txt names: empty it, or run make lock after a change of versions"
    say "$1 is complete: copy it and the checkout, and there run make install WHEELHOUSE=$1"
    ;;
esac
