# shellcheck shell=bash
# What every script here needs: where the repository is, how to speak to the user, how settings are read.
# Sourced, never run. Sourcing it changes no folder and prints nothing.

if ((BASH_VERSINFO[0] < 4)); then
    echo "bash: version $BASH_VERSION is too old. Use bash 4 or newer (on macOS: brew install bash)." >&2
    exit 2
fi

# Relative paths that the user types are relative to this folder; the ones written in launchers, to REPO_ROOT.
INVOKED_FROM=$PWD
REPO_ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)

export PYTHONPATH="$REPO_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export LAUNCHER=pytorch
export PYTHONUNBUFFERED=1 # a log that is piped through tee should not lag behind the training
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

# say TEXT: a line about progress. On stderr, so that stdout holds results only.
say() {
    printf '%s\n' "$*" >&2
}

# die MESSAGE: ends the script over a mistake of the user's.
# MESSAGE reads "<what>: <what is wrong, with the value found>. <what to do>."
die() {
    printf '%s\n' "$*" >&2
    exit 2
}

# is_on VALUE: true for 1, true, yes, on; false when empty, 0, false, no, off.
is_on() {
    case ${1:-0} in
        0 | [Ff]alse | FALSE | [Nn]o | NO | [Oo]ff | OFF) return 1 ;;
        *) return 0 ;;
    esac
}

# check_positive NAME VALUE: VALUE is a whole number from 1 to 999999999, or the script ends.
check_positive() {
    [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die "$1: expected a whole number of 1 or more, found '$2'. Set for example $1=1."
}

# cpu_cores: the number of cores this process may use. nproc would answer with OMP_NUM_THREADS where that is set.
cpu_cores() {
    env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1
}

# ---- settings -------------------------------------------------------------------------------------------------------

# setting NAME DEFAULT: gives the variable NAME its default where the user has not set it.
setting() {
    [[ -n ${!1:-} ]] || printf -v "$1" '%s' "$2"
}

# input_path NAME DEFAULT, output_path NAME DEFAULT: the same for a path. A default is relative to the repository root; a
# path that the user gave is found as resolve_input and resolve_output say.
input_path() {
    if [[ -n ${!1:-} ]]; then resolve_input "$1"; else printf -v "$1" '%s' "$2"; fi
}

output_path() {
    if [[ -n ${!1:-} ]]; then resolve_output "$1"; else printf -v "$1" '%s' "$2"; fi
}

# resolve_input NAME: rewrites the path in variable NAME, which the user typed, so that it is right from the repository
# root: the one in the folder where the command was typed if it exists there, otherwise the one under the root.
resolve_input() {
    local path=${!1}
    if [[ $path != /* && -e $INVOKED_FROM/$path ]]; then
        resolve_output "$1"
    elif [[ $path == -* ]]; then
        printf -v "$1" './%s' "$path" # or it would be read as a flag
    fi
}

# resolve_output NAME: the same for something that may not exist yet: relative to where the command was typed.
resolve_output() {
    local path=${!1}
    if [[ $path == /* ]]; then
        return
    elif [[ ! $INVOKED_FROM -ef $REPO_ROOT ]]; then
        path=$INVOKED_FROM/$path
    elif [[ $path == -* ]]; then
        path=./$path
    fi
    printf -v "$1" '%s' "$path"
}

# print_command WORD...: the command as three lines that can be pasted into any shell.
print_command() {
    local name
    printf 'cd %q\n' "$REPO_ROOT"
    printf 'export'
    for name in PYTHONPATH PYTHONUNBUFFERED LAUNCHER TOKENIZERS_PARALLELISM TF_CPP_MIN_LOG_LEVEL OMP_NUM_THREADS; do
        [[ -z ${!name:-} ]] || printf ' %s=%q' "$name" "${!name}"
    done
    printf '\n%q' "$1"
    printf ' %q' "${@:2}"
    printf '\n'
}
