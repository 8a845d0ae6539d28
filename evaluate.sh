#!/usr/bin/env bash
# Scores a checkpoint on a task: evaluate.sh CHECKPOINT TASK [FLAG...]. Run it without arguments for the usage.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=shell/lib/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/shell/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=shell/lib/install.sh
source "$REPO_ROOT/shell/lib/install.sh"
# shellcheck source-path=SCRIPTDIR source=shell/lib/batch.sh
source "$REPO_ROOT/shell/lib/batch.sh"
# shellcheck source-path=SCRIPTDIR source=shell/lib/torchrun.sh
source "$REPO_ROOT/shell/lib/torchrun.sh"

# task, script, data sets
TASKS=(
    'caption-coco       eval/caption/evaluate_caption.py  coco'
    'caption-flickr30k  eval/caption/evaluate_caption.py  flickr30k'
    'caption-nocaps     eval/caption/evaluate_caption.py  nocaps'
    'caption-habitat    eval/caption/evaluate_caption.py  habitat'
    'caption            eval/caption/evaluate_caption.py  coco,flickr30k,nocaps,habitat'
)

usage() {
    cat <<USAGE
Usage: [GPUS=N] bash evaluate.sh CHECKPOINT TASK [FLAG...]

    GPUS=1 bash evaluate.sh pretrained/InternVL2-2B caption-coco --dynamic --auto
    GPUS=8 bash evaluate.sh log/habitat/lora_annots_1 caption-habitat

CHECKPOINT  a base model, a merged model, or the output folder of a finetune
TASK        $(task_names)
FLAG        passed on to the evaluation; --auto uses all devices from one process
GPUS        number of processes, one per device (default 1)
DRY_RUN=1   prints the command and runs nothing
USAGE
}

task_names() {
    local names=("${TASKS[@]%% *}")
    printf '%s' "${names[0]}"
    printf ', %s' "${names[@]:1}"
}

# find_task NAME: sets SCRIPT and DATASETS.
find_task() {
    local row name
    for row in "${TASKS[@]}"; do
        read -r name SCRIPT DATASETS <<<"$row"
        [[ $name != "$1" ]] || return 0
    done
    die "$1: there is no such task. Use one of: $(task_names)."
}

# read_flags FLAG...: fills PASSED_ON, and notices --auto.
read_flags() {
    local OUT_DIR
    PASSED_ON=() AUTO=0
    while (($#)); do
        case $1 in
            --auto) AUTO=1 ;;
            --out-dir | --out_dir)
                (($# > 1)) || die "$1: has no value. Write it after the flag: $1 FOLDER."
                OUT_DIR=$2
                resolve_output OUT_DIR
                PASSED_ON+=("$1")
                shift
                set -- "$OUT_DIR" "${@:2}"
                ;;
            --out-dir=* | --out_dir=*)
                OUT_DIR=${1#*=}
                resolve_output OUT_DIR
                set -- "${1%%=*}=$OUT_DIR" "${@:2}"
                ;;
        esac
        PASSED_ON+=("$1")
        shift
    done
}

case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
    '')
        usage >&2
        exit 2
        ;;
esac
CHECKPOINT=$1
(($# > 1)) || die "TASK: missing after the checkpoint. Use one of: $(task_names)."
find_task "$2"
read_flags "${@:3}"
setting GPUS 1
check_positive GPUS "$GPUS"
if ((AUTO && GPUS > 1)); then
    say "GPUS=$GPUS is not used: --auto runs one process."
    GPUS=1
fi
resolve_input CHECKPOINT
cd -- "$REPO_ROOT"

if is_on "${DRY_RUN:-}"; then
    find_python
else
    [[ -d $CHECKPOINT ]] ||
        die "$CHECKPOINT: there is no such folder. Give the folder of a checkpoint; \"bash tools/download_pretrained.sh\"" \
            "gets InternVL2-2B, and pretrained/InternVL2-Tiny is shipped."
    ensure_python
fi

COMMAND=("$PYTHON")
if ((GPUS > 1)); then
    # shellcheck disable=SC2034 # read by torchrun_command
    NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-$(free_port)}
    if detect_device && [[ $DEVICE == cuda ]]; then
        ((GPUS <= NUM_DEVICES)) || is_on "${DRY_RUN:-}" ||
            die "GPUS: $GPUS asked for, and this machine has $NUM_DEVICES. Set GPUS=$NUM_DEVICES."
    else
        share_cores "$GPUS"
    fi
    torchrun_command
    COMMAND=("${TORCHRUN[@]}")
fi
COMMAND+=("$SCRIPT" --checkpoint "$CHECKPOINT" --datasets "$DATASETS" ${PASSED_ON[@]+"${PASSED_ON[@]}"})

if is_on "${DRY_RUN:-}"; then
    printf 'Dry run: nothing is started and nothing is written.\nCheckpoint: %s' "$CHECKPOINT"
    [[ -d $CHECKPOINT ]] || printf ' (missing)'
    printf '\n\nThe command:\n'
    print_command "${COMMAND[@]}"
else
    exec "${COMMAND[@]}"
fi
