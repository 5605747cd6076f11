# Sourced by the install scripts: words for the user, and Debian packages where those may be installed.

set -euo pipefail

say() { printf '%s\n' "== $*"; }

fail() {
    printf '%s\n' "mpiimg install: $*" >&2
    exit 1
}

may_install_packages() {
    [ "${APT:-1}" != 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

# Install the named Debian packages that are not there yet, and say which.
install_packages() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing Debian packages (APT=0 forbids it): ${missing[*]}"
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    "${apt[@]}" update </dev/null || say "apt-get update failed; going on with the package lists that are there"
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
        fail "apt-get could not install: ${missing[*]}"
}

# refuse_shared FOLDER: what is installed from a folder is code, so that nobody else may have put it there.
refuse_shared() {
    local owner mode
    [ -e "$1" ] || return 0
    read -r owner mode <<<"$(stat -Lc '%u %a' "$1")"
    [ "$owner" = "$(id -u)" ] || [ "$owner" = 0 ] || fail "$1 belongs to another user, and what lies there would be run: name a folder of your own"
    [ $((8#$mode & 2)) = 0 ] || fail "everybody may write to $1, and what lies there would be run: chmod o-w, or name another"
}
