# Sourced by install.sh: find the site's MPI and a parallel HDF5 built on it, and build mpi4py and h5py against them.
#
# find_site sets MPICC, HDF5_PKGCONFIG_NAME or HDF5_DIR, and the versions found; what the user set stands.
# Both wheels are built from source. mpi4py's own wheel would find a Debian Open MPI by itself, but it looks
# the library up by name when it is imported, so that modules and LD_LIBRARY_PATH decide which MPI it is;
# built from source it is bound to the library of the mpicc that h5py is built with.

REMEMBERED=${PREFIX:-.venv-mpi}/.site

# Print what the C preprocessor makes of the words after `id`; fails if a header is missing.
preprocess() {
    local mpicc=$1 headers=$2 words=$3
    shift 3
    printf '%b\nid %s\n' "$headers" "$words" | "$mpicc" "$@" -E -P -x c - 2>/dev/null | sed -n 's/^id //p'
}

# Set mpi_flavour and mpi_version from mpi.h, or fail.
read_mpi() {
    local found
    found=$(preprocess "$1" '#include <mpi.h>' \
        'OMPI_MAJOR_VERSION.OMPI_MINOR_VERSION.OMPI_RELEASE_VERSION MPICH_VERSION') || return 1
    case "$found" in
    "") return 1 ;;
    OMPI_*MPICH_VERSION) mpi_flavour=mpi mpi_version=unknown ;;
    OMPI_*) mpi_flavour=mpich mpi_version=$(tr -d '"' <<<"${found#* }") ;;
    *) mpi_flavour=openmpi mpi_version=$(tr -d ' ' <<<"${found% MPICH_VERSION}") ;;
    esac
}

# Set hdf5_version if the HDF5 behind the given compiler flags is parallel, or fail.
read_hdf5() {
    local mpicc=$1 found
    shift
    found=$(preprocess "$mpicc" '#include <hdf5.h>\n#ifndef H5_HAVE_PARALLEL\n#error serial\n#endif' \
        'H5_VERS_MAJOR.H5_VERS_MINOR.H5_VERS_RELEASE' "$@") && [ -n "$found" ] || return 1
    hdf5_version=$(tr -d ' ' <<<"$found")
}

# Find a parallel HDF5 for one mpicc: by what the user named, by pkg-config, or beside h5pcc.
find_hdf5() {
    local mpicc=$1 name flags names=("${HDF5_PKGCONFIG_NAME:-}")
    if [ -n "${HDF5_DIR:-}" ]; then
        read_hdf5 "$mpicc" "-I$HDF5_DIR/include"
        return
    fi
    [ -n "${HDF5_PKGCONFIG_NAME:-}" ] || names=("hdf5-$mpi_flavour" hdf5)
    for name in "${names[@]}"; do
        flags=$(pkg-config --cflags "$name" 2>/dev/null) || continue
        # shellcheck disable=SC2086  # the flags are words of their own
        read_hdf5 "$mpicc" $flags && HDF5_PKGCONFIG_NAME=$name && return
    done
    [ -z "${HDF5_PKGCONFIG_NAME:-}" ] && command -v h5pcc >/dev/null || return 1
    name=$(dirname "$(dirname "$(readlink -f "$(command -v h5pcc)")")")
    read_hdf5 "$mpicc" "-I$name/include" && HDF5_DIR=$name
}

# A compiler that came with the mpich wheel, in an environment that happens to be active, is not the site's.
is_from_wheel() { [ -e "$(dirname "$1")/../pyvenv.cfg" ]; }

find_site() {
    local candidate path candidates=(mpicc mpicc.openmpi mpicc.mpich)
    [ -z "${MPICC:-}" ] || candidates=("$MPICC")
    missing=
    for candidate in "${candidates[@]}"; do
        path=$(command -v "$candidate") && ! is_from_wheel "$path" || continue
        read_mpi "$path" || continue
        if find_hdf5 "$path"; then
            MPICC=$path missing=
            return
        fi
        missing=${missing:-"a parallel HDF5 for $path (set HDF5_PKGCONFIG_NAME= or HDF5_DIR=)"}
    done
    missing=${missing:-"a working MPI compiler, ${MPICC:-mpicc} (set MPICC=)"}
    return 1
}

# The same settings as last time, unless the user says otherwise or they no longer hold.
recall_site() {
    [ -z "${MPICC:-}${HDF5_PKGCONFIG_NAME:-}${HDF5_DIR:-}" ] && [ -e "$REMEMBERED" ] || return 0
    # shellcheck source=/dev/null
    . "$REMEMBERED"
    find_site || unset MPICC HDF5_PKGCONFIG_NAME HDF5_DIR
}

remember_site() {
    printf '%s=%q\n' MPICC "$MPICC" HDF5_PKGCONFIG_NAME "${HDF5_PKGCONFIG_NAME:-}" HDF5_DIR "${HDF5_DIR:-}" \
        >"$REMEMBERED"
}

has_python_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

# Names of the Debian packages for what find_site and has_python_headers did not find. None for an MPI or HDF5
# that the user named and Debian does not have.
site_packages() {
    local python=$1 asked="${MPICC:-} ${HDF5_PKGCONFIG_NAME:-} ${HDF5_DIR:-}"
    if ! find_site; then
        case "$asked" in
        "  " | *[.-]openmpi*) echo gcc libc6-dev pkgconf openmpi-bin libopenmpi-dev libhdf5-openmpi-dev ;;
        *[.-]mpich*) echo gcc libc6-dev pkgconf mpich libmpich-dev libhdf5-mpich-dev ;;
        esac
    fi
    has_python_headers "$python" || "$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])'
}

# Sets `lacking` to what this machine lacks for MPI=system, empty if nothing.
list_lacking() {
    local python=$1
    lacking=
    find_site || lacking=$missing
    has_python_headers "$python" || lacking=${lacking:+$lacking; }"Python.h of $python"
}

# Find everything that MPI=system needs; install Debian's where that is allowed, else name what is missing.
require_site() {
    local python=$1 packages
    recall_site
    list_lacking "$python"
    [ -n "$lacking" ] || return 0
    packages=$(site_packages "$python" | xargs)
    if [ -n "$packages" ] && may_install_packages; then
        # shellcheck disable=SC2086  # names of packages are words of their own
        install_packages $packages
        list_lacking "$python"
    fi
    [ -z "$lacking" ] ||
        fail "MPI=system is not possible, missing: $lacking.${packages:+ On Debian, as root: apt-get install $packages}"
}

pinned() { sed -n "s/^$1==//p" constraints.txt; }

# The folder of the built wheels: one for each Python, MPI and HDF5, since a wheel fits no other.
wheel_folder() {
    local python=$1 tag details
    tag=$("$python" -c 'import sys; print(sys.implementation.cache_tag)')
    details=$({ "$python" -VV; "$MPICC" -show 2>/dev/null || echo "$MPICC"
        echo "${HDF5_PKGCONFIG_NAME:-} ${HDF5_DIR:-}"; } | sha256sum | cut -c1-8)
    echo "$CACHE/wheels/$tag-$mpi_flavour-$mpi_version-hdf5-$hdf5_version-$details"
}

# Build one wheel from source into the folder, unless it is there.
build_wheel() {
    local pip=$1 folder=$2 name=$3 wheel=$2/$3-$(pinned "$3")- part
    ! compgen -G "$wheel*.whl" >/dev/null || return 0
    say "building $name $(pinned "$name") against $mpi_flavour $mpi_version and HDF5 $hdf5_version, once: a few minutes"
    mkdir -p "$folder"
    part=$(mktemp -d "$folder/part.XXXXXX") # of this install alone: another may share the folder
    # pip's own cache knows wheels by name and version alone: one built against another MPI would come out of it.
    CC=$MPICC MPICC=$MPICC CFLAGS=-O1 HDF5_MPI=ON HDF5_DIR=${HDF5_DIR:-} HDF5_PKGCONFIG_NAME=${HDF5_PKGCONFIG_NAME:-} \
        "$pip" wheel -qq --no-cache-dir --no-build-isolation --no-deps --no-binary "$name" \
        -c constraints.txt -w "$part" "$name" || fail "$name did not build against $MPICC"
    mv "$part/$name"-*.whl "$folder/"
    rm -rf "$part"
}

# mpi4py first: h5py is compiled against it.
install_site_wheels() {
    local pip=$1 folder=$2 name
    refuse_shared "$CACHE"
    refuse_shared "$folder"
    "$pip" install -qq --only-binary :all: -c constraints.txt cython pkgconfig numpy
    for name in mpi4py h5py; do
        build_wheel "$pip" "$folder" "$name"
        "$pip" install -qq --no-deps --force-reinstall "$folder/$name-$(pinned "$name")"-*.whl
    done
}

# One spelling for both installs: .venv-mpi/bin/mpiexec is the launcher of the MPI that was built against.
# A script and not a link: Open MPI takes the folder of the name it was called by for its own prefix.
write_launcher() {
    local venv=$1 launcher
    launcher=$(dirname "$MPICC")/$(basename "$MPICC" | sed 's/mpicc/mpiexec/')
    [ -x "$launcher" ] || launcher=$(command -v mpiexec) || {
        say "no mpiexec beside $MPICC: start runs with srun"
        return 0
    }
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$launcher" >"$venv/bin/mpiexec"
    chmod +x "$venv/bin/mpiexec"
}
