# shellcheck shell=bash
# ensure_python: a Python with everything in requirements.txt, installed once. Needs common.sh.

# What the pins of requirements.txt need (Requires-Python; held to them by tests/shell/test_install.py).
OLDEST_PYTHON=3.11
# Newest first. A version is added here once the packages of requirements.txt have wheels for it.
PYTHON_VERSIONS=(3.14 3.13 3.12 3.11)

# ensure_python: sets PYTHON. Uses the active environment (VIRTUAL_ENV or CONDA_PREFIX); without one it makes .venv at the
# repository root. A stamp in the environment remembers what was installed, so the second call costs milliseconds.
# INTERNVL_SKIP_INSTALL=1 uses the Python found as it is.
ensure_python() {
    local prefix wanted
    if is_on "${INTERNVL_SKIP_INSTALL:-}"; then
        find_python
        return
    fi
    prefix=$(environment_folder)
    if [[ ! -x $prefix/bin/python || ! -f $prefix/.internvl-installed ]]; then
        install_into "$prefix"
        return
    fi
    PYTHON=$prefix/bin/python
    wanted=$(install_stamp "$PYTHON")
    [[ $(<"$prefix/.internvl-installed") == "$wanted" ]] || install_into "$prefix"
}

# find_python: sets PYTHON without installing or creating anything.
find_python() {
    PYTHON=$(environment_folder)/bin/python
    # A .venv that is not there yet, or was made by a Python that is too old now, is ensure_python's to make.
    if [[ $PYTHON == "$REPO_ROOT/.venv/bin/python" ]] && ! is_new_enough "$PYTHON"; then
        PYTHON=$(first_python sys python3 python "${PYTHON_VERSIONS[@]/#/python}")
    fi
    check_python_version "$PYTHON"
}

# environment_folder: prints where the environment is, or is to be.
environment_folder() {
    local name
    for name in VIRTUAL_ENV CONDA_PREFIX; do
        [[ -n ${!name:-} ]] || continue
        [[ -x ${!name}/bin/python ]] ||
            die "$name: ${!name} has no bin/python. Activate the environment again, or unset $name to get a .venv here."
        printf '%s\n' "${!name}"
        return
    done
    printf '%s\n' "$REPO_ROOT/.venv"
}

# is_new_enough PYTHON: whether it is one that the pins of requirements.txt can do with.
is_new_enough() {
    "$1" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

check_python_version() {
    local version
    version=$("$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        die "$1: does not start. Repair this Python, or activate another environment."
    case $version in
        2.* | 3.[0-9] | 3.10)
            die "$1: this is Python $version, and the packages of requirements.txt need $OLDEST_PYTHON or newer." \
                "Activate an environment with such a Python, or install one and deactivate this one."
            ;;
    esac
}

# install_stamp PYTHON: prints what an installation depends on: the requirements and the Python version.
install_stamp() {
    "$1" -I -S -c '
import hashlib, sys
with open(sys.argv[1], "rb") as file:
    print("requirements", hashlib.sha256(file.read()).hexdigest(), "python %d.%d" % sys.version_info[:2])
' "$REPO_ROOT/requirements.txt"
}

# install_into PREFIX: makes the environment when it is not there, installs the requirements, writes the stamp.
install_into() {
    local prefix=$1 lock_fd stamp=$1/.internvl-installed wanted
    if ! { mkdir -p -- "$prefix" && : >>"$prefix/.internvl-lock"; } 2>/dev/null; then
        die "$prefix: cannot be written, so nothing can be installed there. Activate an environment of your own, or set" \
            "INTERNVL_SKIP_INSTALL=1 to use this one as it is."
    fi
    # Two launchers started together must not install at once: the second one waits here, then finds the stamp.
    exec {lock_fd}>"$prefix/.internvl-lock"
    if command -v flock >/dev/null && ! flock -n "$lock_fd"; then
        say "Another process is installing into $prefix: waiting for it."
        flock "$lock_fd"
    fi

    PYTHON=$prefix/bin/python
    # A run that was cut off may have left a folder without pip, or without a working Python; an older checkout, one of
    # a Python that is too old now.
    if [[ $prefix == "$REPO_ROOT/.venv" ]] &&
        ! "$PYTHON" -I -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        make_environment "$prefix"
    fi
    check_python_version "$PYTHON"
    wanted=$(install_stamp "$PYTHON")
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        install_requirements "$prefix"
        printf '%s\n' "$wanted" >"$stamp.new"
        mv -f -- "$stamp.new" "$stamp"
    fi
    exec {lock_fd}>&-
}

# make_environment FOLDER: a fresh virtual environment made by the newest Python that can make one.
make_environment() {
    local base
    base=$(first_python venv,ensurepip "${PYTHON_VERSIONS[@]/#/python}" python3 python)
    say "Making a virtual environment in $1 with $("$base" -V 2>&1)."
    # --clear would also remove the lock that this process holds, hence the two lines.
    rm -rf -- "${1:?}/bin" "${1:?}/lib" "${1:?}/lib64" "${1:?}/include" "${1:?}/pyvenv.cfg"
    "$base" -I -m venv "$1" >"$1/install.log" 2>&1 || install_failed "$1" "python -m venv"
}

# first_python MODULES NAME...: prints the first Python of these names on the PATH that is new enough and has MODULES.
first_python() {
    local name path lacking='' too_old=''
    for name in "${@:2}"; do
        path=$(command -v "$name") || continue
        if ! is_new_enough "$path"; then
            too_old=${too_old:-$path}
        elif ! "$path" -I -c "import $1" 2>/dev/null; then
            lacking=${lacking:-$path}
        else
            printf '%s\n' "$path"
            return
        fi
    done
    if [[ -n $lacking ]]; then
        name=$("$lacking" -I -S -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        die "$lacking: cannot make virtual environments (the modules venv and ensurepip are not installed)." \
            "Install them (Debian, Ubuntu: apt install $name-venv) and run this again."
    elif [[ -n $too_old ]]; then
        die "$too_old: this is $("$too_old" -V 2>&1), and $OLDEST_PYTHON is the oldest that works. Install Python $OLDEST_PYTHON or newer, or" \
            "activate an environment that has it."
    fi
    die "python3: not found on this machine. Install Python $OLDEST_PYTHON or newer (Debian, Ubuntu: apt install python3 python3-venv)."
}

# install_requirements PREFIX: pip, with its warnings and progress in a file rather than on the screen.
install_requirements() {
    local prefix=$1 log=$1/install.log start=$SECONDS
    say "Installing requirements.txt into $prefix: once, about 3 to 10 minutes. Progress: tail -f $(printf %q "$log")"
    # Environments made by uv have no pip.
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >>"$log" 2>&1 ||
        die "$prefix: has no pip. Install it there (uv pip install pip), or run: uv pip install -r requirements.txt, then" \
            "set INTERNVL_SKIP_INSTALL=1."
    (cd "$REPO_ROOT" && "$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        -r requirements.txt) >>"$log" 2>&1 || install_failed "$prefix" "pip install -r requirements.txt"
    say "Installed in $((SECONDS - start)) s."
}

# install_failed PREFIX COMMAND: the end of the log, and what to do.
install_failed() {
    say "The last lines of $1/install.log:"
    tail -n 20 -- "$1/install.log" | sed 's/^/    /' >&2
    local todo="Check the free disk space and the reason above"
    if grep -qiE 'connection|timed? ?out|resolve|network|proxy|ssl' "$1/install.log"; then todo="Check the network"; fi
    die "$2: failed (the reason is above; everything is in $1/install.log). $todo, then run the same command again: it" \
        "goes on where it stopped."
}
