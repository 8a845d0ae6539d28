# shellcheck shell=bash
# What all launchers do. A launcher sources this file, states its settings, and ends with the torchrun call of the
# finetune script, which "launch" checks, completes and starts (internvl/launch).
#
# Settings come, in rising order of strength, from the launcher, from the environment
#   GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE MODEL META_PATH OUTPUT_DIR
#   PER_DEVICE_BATCH_SIZE (auto: as many rows as fit into memory)   DEEPSPEED (a file, or none)
#   PRECISION (auto, bf16, fp16, fp32)   DRY_RUN (1: say what would be done, do nothing)
#   DEBUG (1: one process without torchrun and workers, so that breakpoints work)
# from a file of flags
#   CONFIG (YAML, or the training_args.json of a run, which it repeats)
# and from the flags after the launcher's name, which are handed on to the finetune script.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=install.sh
source "$REPO_ROOT/shell/lib/install.sh"

# launch torchrun --nproc_per_node=N SCRIPT [FLAG VALUE]... -- [USER'S FLAG]...: trains. Does not come back.
# launch evaluation SCRIPT [FLAG VALUE]... -- CHECKPOINT [USER'S FLAG]...: evaluates.
launch() {
    cd -- "$REPO_ROOT" || exit
    find_python
    if ! is_on "${DRY_RUN:-}"; then
        # What costs nothing is checked first: nobody should wait for an installation to learn of a typing mistake.
        "$PYTHON" -S -m internvl.launch check "$@"
        ensure_python
    fi
    exec "$PYTHON" -m internvl.launch run "$@"
}
