#!/bin/sh
# Make the virtual environment: find a Python, create the folder, install the hash-checked lock, then vijax itself.
#
#     sh scripts/bootstrap.sh                               .venv, with a Python of the newest JAX where there is one
#     PYTHON=3.13 VENV=.venv-3.13 sh scripts/bootstrap.sh   a chosen Python (a version, a name or a path), beside it
#     sh scripts/bootstrap.sh docs                          the extra `docs` as well, which the lock leaves out
#     sh scripts/bootstrap.sh --which                       only print which Python it would take
#
# The system's Python makes the folder and is never installed into, so it may be externally managed (PEP 668) and may
# lack ensurepip. A second call does nothing until the lock, pyproject.toml or this file changes.
set -eu

oldest=11 # 3.11; the import of vijax itself needs no less
newest=14 # 3.14; requirements.lock has no wheels beyond it
lock=requirements.lock

cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
stamp=$venv/.vijax-installed

say() { echo "vijax: $*" >&2; }
fail() {
    say "$@"
    exit 1
}

# Run it, rather than look for it: a pyenv shim may exist for a version that is not active, and only fail when called.
works() {
    "$1" -c "import sys; v = sys.version_info[:2]
sys.exit(not ((3, $oldest) <= v <= (3, $newest) and sys.implementation.name == 'cpython'))" >/dev/null 2>&1 </dev/null
}

minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

have_uv() { uv --version >/dev/null 2>&1; }

find_python() {
    pyenv=${PYENV_ROOT:-${HOME:-/nowhere}/.pyenv}/versions
    case ${PYTHON:-} in
    "") # Python 3.12 and later run the newest JAX; pyenv keeps what its shims hide
        set -- python3.13 "$pyenv"/3.13.*/bin/python python3.12 "$pyenv"/3.12.*/bin/python
        set -- "$@" python3 python3.14 python3.11 python "$pyenv"/3.1[14].*/bin/python
        range=">=3.$oldest,<3.$((newest + 1))"
        ;;
    [0-9].[0-9]*)
        set -- "python$PYTHON" "$pyenv/$PYTHON"/bin/python "$pyenv/$PYTHON".*/bin/python python3 python
        range=$PYTHON
        ;;
    *)
        set -- "$PYTHON"
        range=
        ;;
    esac
    for py in "$@"; do
        works "$py" || continue
        case ${PYTHON:-} in [0-9].[0-9]*) "$py" -V 2>&1 | grep -Eq "^Python $PYTHON([. ]|\$)" || continue ;; esac
        return 0
    done
    if [ -n "$range" ] && have_uv; then
        py=$(uv python find --no-project --system "$range" 2>/dev/null </dev/null) && works "$py" && return 0
    fi
    return 1
}

no_python() {
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is no working CPython 3.$oldest to 3.$newest; set it to one that is, or unset it."
    fi
    fail "no working CPython 3.$oldest to 3.$newest found; install one (apt install python3 python3-venv, brew install" \
        "python@3.13, or uv python install 3.13), or name one: PYTHON=/path/to/python3 make ..."
}

# A folder that is not a virtual environment is the user's; one whose interpreter is gone is of use to nobody.
create() {
    if [ -f "$venv/pyvenv.cfg" ]; then
        say "$venv has lost its Python and is made anew."
        rm -rf "$venv"
    elif [ -e "$venv" ] && [ -n "$(ls -A "$venv")" ]; then
        fail "$venv exists and is no virtual environment; remove it, or choose another folder: VENV=.venv-vijax make ..."
    fi
    say "making $venv with $("$py" -V 2>&1)"
    # Without pip, for `venv` stops where ensurepip is missing (Debian without python3-venv); pip is seen to afterwards.
    "$py" -m venv --without-pip "$venv" >/dev/null 2>&1 ||
        { have_uv && uv venv --quiet --no-project --allow-existing --python "$py" "$venv"; } ||
        fail "$py cannot make a virtual environment; install its venv module (apt install python3-venv), or uv."
}

find_installer() {
    into=$venv/bin/python
    if "$into" -m pip --version >/dev/null 2>&1 || "$into" -m ensurepip --default-pip >/dev/null 2>&1; then
        with="venv's pip"
    elif have_uv; then
        with=uv
    else
        with="pip from outside" # pip 22.3 and later installs into another interpreter
        base=$("$into" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
        for outside in "$base -m pip" "python3 -m pip" pip3 pip ""; do
            # shellcheck disable=SC2086  # split on purpose: a command and its arguments
            [ -z "$outside" ] || ! $outside --python "$into" --version >/dev/null 2>&1 || break
        done
        [ -n "$outside" ] ||
            fail "found no pip 22.3+, ensurepip or uv to install with; get one of them: apt install python3-venv"
    fi
}

install() {
    # PIP_USER would send packages to the home folder, and a terminal prompt would hang a build that has no one to ask.
    case $with in
    "venv's pip") PIP_USER=0 "$into" -m pip --disable-pip-version-check --no-input install -qq "$@" </dev/null ;;
    uv) uv pip install --quiet --python "$into" "$@" </dev/null ;;
    *)
        # shellcheck disable=SC2086
        PIP_USER=0 $outside --python "$into" --disable-pip-version-check --no-input install -qq "$@" </dev/null
        ;;
    esac
}

# The stamp names the checkout, since an editable install points at it: a folder that was moved is installed again.
installed() {
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$PWD" ] &&
        [ -z "$(find "$lock" pyproject.toml scripts/bootstrap.sh -newer "$stamp")" ]
}

if [ "${1:-}" = --which ]; then
    find_python || no_python
    "$py" -c 'import sys; print(sys.executable)'
    exit
fi

if "$venv/bin/python" -c "" >/dev/null 2>&1; then
    if [ -n "${PYTHON:-}" ]; then
        find_python || no_python
        [ "$(minor "$py")" = "$(minor "$venv/bin/python")" ] ||
            fail "$venv holds Python $(minor "$venv/bin/python"), not $(minor "$py"); keep both: VENV=.venv-$(minor "$py") make ..."
    fi
else
    find_python || no_python
    create
fi

if ! installed; then
    case $("$venv/bin/python" -c 'import sysconfig as s; print(s.get_platform(), s.get_config_var("SOABI"))') in
    macosx-*-x86_64*) fail "JAX has no releases for Intel Macs any more; use Linux, or an arm64 Python on Apple silicon." ;;
    *musl*) fail "JAX has no releases for musl (Alpine); use a system with glibc 2.28+, such as Debian or Ubuntu." ;;
    esac
    find_installer
    echo "$PWD" >"$stamp.new" # dated before the install, so that a lock edited meanwhile counts as newer
    say "installing $lock with $with (about a minute, 240 MB to download the first time)"
    # Wheels only: a source package would run code, and fetch build tools, that no hash covers.
    install --require-hashes --only-binary :all: -r "$lock" ||
        fail "could not install $lock (the reason is above); mind the network, proxy and disk space, and run make again."
    # Its build backend came with the lock.
    install --no-deps --no-build-isolation -e . ||
        fail "could not install vijax from this folder (the reason is above); run make again after mending it."
    mv "$stamp.new" "$stamp"
fi

if [ -n "${1:-}" ]; then
    find_installer
    say "installing the extra $1"
    install --no-build-isolation -e ".[$1]" ||
        fail "could not install the extra $1 (the reason is above); mind the network, and run make again."
fi
