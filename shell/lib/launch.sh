# shellcheck shell=bash
# What all finetune launchers do. A launcher sources this file, states its settings, and ends with torchrun_finetune.
#
# Settings come, in rising order of strength, from the launcher, from the environment
#   GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH OUTPUT_DIR
#   DEEPSPEED (a file, or none)   PRECISION (auto, bf16, fp16, fp32)   DRY_RUN (1: say what would be done, do nothing)
# and from the flags after the launcher's name, which are handed on to the finetune script.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=install.sh
source "$REPO_ROOT/shell/lib/install.sh"

# torchrun_finetune SCRIPT [RECIPE FLAG VALUE]... -- [USER'S FLAG]...: starts SCRIPT with torchrun, one process per GPU
# (internvl/launch: arithmetic, checks, precision, dry run, log, signals). Does not come back.
torchrun_finetune() {
    export INVOKED_FROM GPUS PER_DEVICE_BATCH_SIZE BATCH_SIZE MODEL META_PATH OUTPUT_DIR PRECISION
    [[ -z ${DEEPSPEED+set} ]] || export DEEPSPEED
    cd -- "$REPO_ROOT" || exit
    find_python
    if is_on "${DRY_RUN:-}"; then
        check_python_version "$PYTHON"
    else
        # What costs nothing is checked first: nobody should wait for an installation to learn of a typing mistake. Not
        # with a Python that is too old: a newer one may be installed beside it.
        ! is_new_enough "$PYTHON" || "$PYTHON" -S -m internvl.launch check "$@"
        ensure_python
    fi
    exec "$PYTHON" -m internvl.launch run "$@"
}
