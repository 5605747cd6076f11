#!/usr/bin/env bash
# make install: .venv (MPI=wheel) or .venv-mpi (MPI=system), from the repository's folder.
#
#   install/install.sh wheel|system     install, or do nothing where nothing has changed
#   install/install.sh docs             the same as wheel, and what builds the docs
#   install/install.sh possible         exit 0 if MPI=system can be installed here, else say why not
#
# Variables: PYTHON, WARM, APT, CACHE, WHEELHOUSE, PREFIX; for system also MPICC, HDF5_PKGCONFIG_NAME, HDF5_DIR. See docs/install.md.

cd "$(dirname "$0")/.."
. install/common.sh
. install/venv.sh
. install/system.sh
CACHE=${CACHE:-.cache}

# Without a network: what make wheelhouse gathered, after a look at every hash.
use_wheelhouse() {
    local python=$1
    [ -d "$WHEELHOUSE" ] || fail "WHEELHOUSE=$WHEELHOUSE: no such folder; make wheelhouse fills one"
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELHOUSE
    "$python" install/lock.py "$WHEELHOUSE" | diff install/lock.txt - >/dev/null ||
        fail "$WHEELHOUSE holds other files than install/lock.txt names: make wheelhouse fills it anew"
}

# A digest of all that an environment is made from; with the site's MPI and HDF5 in it for MPI=system.
digest_inputs() {
    { cat pyproject.toml setup.py constraints.txt install/*; compgen -G "bin/*" || true; printf '%s\n' "$@"; } | sha256sum | cut -d' ' -f1
}

is_current() { [ -e "$1/.installed" ] && [ "$(cat "$1/.installed")" = "$2" ]; }

# The project itself, with all else from wheels: in place, or copied into a PREFIX, which then needs no checkout.
install_project() {
    local pip=$1 project=(-e ".[$2]")
    [ -z "${PREFIX:-}" ] || project=(".[$2]")
    "$pip" install -qq --only-binary :all: --no-build-isolation --use-pep517 -c constraints.txt "${project[@]}"
}

install_build_tools() { "$1" -m pip install -qq --only-binary :all: -c constraints.txt pip setuptools wheel; }

install_wheel() {
    local venv=${PREFIX:-.venv} digest
    digest=$(digest_inputs wheel)
    ensure_venv $venv
    if ! is_current $venv "$digest"; then
        [ -z "${WHEELHOUSE:-}" ] || use_wheelhouse $venv/bin/python
        say "installing into $venv: MPI from a wheel, serial h5py"
        rm -f $venv/.installed
        install_build_tools $venv/bin/python
        install_project $venv/bin/pip mpich,all,test
        $venv/bin/python install/check_mpi.py wheel
        write_manual $venv
        echo "$digest" >$venv/.installed
    fi
    warm $venv
}

install_system() {
    local venv=${PREFIX:-.venv-mpi} digest folder
    if [ -x $venv/bin/python ]; then require_site $venv/bin/python; else require_python "${PYTHON:-python3}"; require_site "${PYTHON:-python3}"; fi
    ensure_venv $venv
    folder=$(wheel_folder $venv/bin/python)
    digest=$(digest_inputs "$folder" "$MPICC")
    if ! is_current $venv "$digest"; then
        [ -z "${WHEELHOUSE:-}" ] || use_wheelhouse $venv/bin/python
        say "installing into $venv: $mpi_flavour $mpi_version of $MPICC, parallel HDF5 $hdf5_version"
        rm -f $venv/.installed
        install_build_tools $venv/bin/python
        install_site_wheels $venv/bin/pip "$folder"
        install_project $venv/bin/pip all,test
        write_launcher $venv
        $venv/bin/python install/check_mpi.py system
        write_manual $venv
        remember_site
        echo "$digest" >$venv/.installed
    fi
    warm $venv
}

# Pages that man finds beside the programs.
write_manual() { $1/bin/mpiimg man $1/share/man >/dev/null; }

# Compile every kernel now, so that no run of many ranks starts with a cold cache. They are part of the install: in
# __pycache__/kernels of the package, each with a checksum, read by everybody and written by who installs.
warm() {
    [ "${WARM:-1}" != 0 ] || return 0
    # From elsewhere, since Python prefers the checkout in its folder to what is installed.
    (cd "$1" && NUMBA_CACHE_DIR= PYTHONPATH= bin/python -m mpiimg.engine.precompile)
}

case "${1:-}" in
wheel) install_wheel ;;
system) install_system ;;
docs)
    install_wheel
    .venv/bin/python -c 'import myst_parser, sphinx' 2>/dev/null || {
        [ -z "${WHEELHOUSE:-}" ] || use_wheelhouse .venv/bin/python
        install_project .venv/bin/pip mpich,all,docs,test
    }
    ;;
possible)
    may_install_packages && exit 0
    recall_site
    list_lacking "${PYTHON:-python3}"
    [ -z "$lacking" ] || { echo "missing: $lacking"; exit 1; }
    ;;
*) fail "MPI=${1:-} is neither wheel nor system" ;;
esac
