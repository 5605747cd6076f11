# Sourced by install.sh: make a virtual environment, on any machine that has a Python of 3.11 or newer.

# What tells one Python from another; empty if it does not run.
python_identity() { "$1" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null || true; }

require_python() {
    local python=$1
    if ! command -v "$python" >/dev/null && [ "$python" = python3 ] && may_install_packages; then
        install_packages python3 python3-venv
    fi
    command -v "$python" >/dev/null || fail "no $python on PATH: name a Python of 3.11 or newer with PYTHON="
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) is too old: name a Python of 3.11 or newer, as in make install PYTHON=python3.12"
}

# Four ways to an environment with pip in it, of which the first that works is taken; none but the last needs root.
try_venv() {
    local python=$1 venv=$2
    "$python" -m venv "$venv" >/dev/null 2>&1 && return
    rm -rf "$venv"
    "$python" -m virtualenv -q "$venv" 2>/dev/null && return
    rm -rf "$venv"
    "$python" -m pip --version >/dev/null 2>&1 &&
        "$python" -m venv --without-pip "$venv" &&
        "$python" -m pip --python "$venv/bin/python" install -qq pip && return
    rm -rf "$venv"
    return 1
}

make_venv() {
    local python=$1 venv=$2 package
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    try_venv "$python" "$venv" && return
    if may_install_packages; then
        install_packages "$package"
        try_venv "$python" "$venv" && return
    fi
    fail "$python cannot make a virtual environment: install $package (Debian), virtualenv or pip, or name another PYTHON="
}

# Make sure that there is an environment in $venv; an existing one stays unless PYTHON names another Python.
ensure_venv() {
    local venv=$1
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        [ -n "${PYTHON:-}" ] || return 0
        require_python "$PYTHON"
        [ "$(python_identity "$PYTHON")" != "$(python_identity "$venv/bin/python")" ] || return 0
        say "$venv was made with another Python than $PYTHON: making it anew"
    fi
    require_python "${PYTHON:-python3}"
    rm -rf "$venv"
    make_venv "${PYTHON:-python3}" "$venv"
}
