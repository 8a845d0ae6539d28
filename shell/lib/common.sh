# shellcheck shell=bash
# What every script here needs: where the repository is, how to speak to the user, how settings are read.
# Sourced, never run. Sourcing it changes no folder and prints nothing.

if ((BASH_VERSINFO[0] < 4)); then
    echo "bash: version $BASH_VERSION is too old. Use bash 4 or newer (on macOS: brew install bash)." >&2
    exit 2
fi

# Relative paths that the user types are relative to this folder; the ones written in launchers, to REPO_ROOT.
export INVOKED_FROM=$PWD
REPO_ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)

export PYTHONPATH="$REPO_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export LAUNCHER=pytorch
export PYTHONUNBUFFERED=1 # a log that is piped through tee should not lag behind the training
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
# The lengths of batches vary: without this, the GPU's memory would be cut into pieces that fit none of them.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
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

# ---- settings -------------------------------------------------------------------------------------------------------

# setting NAME DEFAULT: exports NAME, with its default where the user has not set it.
setting() {
    export "$1=${!1:-$2}"
}

# output_path NAME DEFAULT: the same for a path. The default is relative to REPO_ROOT; the user's, to INVOKED_FROM.
output_path() {
    if [[ -n ${!1:-} && ${!1} != /* && ! $INVOKED_FROM -ef $REPO_ROOT ]]; then
        printf -v "$1" '%s/%s' "$INVOKED_FROM" "${!1}"
    fi
    setting "$@"
    [[ ${!1} != -* ]] || export "$1=./${!1}" # or it would be read as a flag
}

# input_path NAME DEFAULT: the same for what is read, and REPO_ROOT is where to look for what INVOKED_FROM does not have.
input_path() {
    if [[ -z ${!1:-} || -e $INVOKED_FROM/${!1} || ${!1} == -* ]]; then output_path "$@"; else setting "$@"; fi
}
