#!/usr/bin/env bash
# Scores a checkpoint on a task: evaluate.sh CHECKPOINT TASK [FLAG...]. Run it without arguments for the usage.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=shell/lib/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/shell/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=shell/lib/install.sh
source "$REPO_ROOT/shell/lib/install.sh"
# shellcheck source-path=SCRIPTDIR source=shell/lib/torchrun.sh
source "$REPO_ROOT/shell/lib/torchrun.sh"

# task, script, flags; of several rows that fit, the first one counts, and NAME stands for what fits the *
TASKS=(
    'caption         eval/caption/evaluate_caption.py  --datasets present'
    'caption-custom  eval/caption/evaluate_caption.py'
    'caption-train   eval/caption/evaluate_caption.py'
    'caption-*       eval/caption/evaluate_caption.py  --datasets NAME'
)
# Flags whose value is a path that has to be there, and those whose value is written to.
INPUT_FLAGS='annotation|root|meta|compare|base'
OUTPUT_FLAGS='out-dir|out_dir|vision-cache|vision_cache'
TASK_NAMES='caption, caption-NAME (coco, flickr30k, nocaps, habitat), caption-custom or caption-train'

usage() {
    cat <<USAGE
Usage: [GPUS=N] bash evaluate.sh CHECKPOINT TASK [FLAG...]

    GPUS=1 bash evaluate.sh pretrained/InternVL2-2B caption-coco --dynamic --auto
    GPUS=8 bash evaluate.sh log/habitat/lora_annots_1 caption-habitat
    bash evaluate.sh log/mine caption-custom --annotation val.jsonl --root data/mine --dynamic
    bash evaluate.sh log/mine caption-train --meta shell/data/habitat.json --limit 500
    bash evaluate.sh log/mine caption-coco --dynamic --engine vllm

CHECKPOINT  a base model, a merged model, or the output folder of a finetune
TASK        caption-NAME: a data set of eval/caption/datasets.json (coco, flickr30k, nocaps, habitat)
            caption: all of them that are there
            caption-custom: a JSONL file of training rows, with --annotation FILE --root FOLDER
            caption-train: the training rows of a meta file, with --meta FILE
FLAG        passed on to the evaluation; --auto uses all devices from one process, and
            --base FOLDER names the base of an adapter that records another path
GPUS        number of processes, one per device (default 1)
DRY_RUN=1   prints the command and runs nothing
USAGE
}

# find_task NAME: sets SCRIPT and SCRIPT_FLAGS.
find_task() {
    local row pattern flags
    for row in "${TASKS[@]}"; do
        read -r pattern SCRIPT flags <<<"$row"
        # shellcheck disable=SC2254 # the pattern is to be one
        case $1 in
            $pattern)
                read -ra SCRIPT_FLAGS <<<"$flags"
                SCRIPT_FLAGS=("${SCRIPT_FLAGS[@]/#NAME/"${1#caption-}"}")
                return
                ;;
        esac
    done
    die "$1: there is no such task. Use $TASK_NAMES."
}

# read_flags FLAG...: fills PASSED_ON, with paths that are right from the repository root, and notices --auto.
read_flags() {
    local flag given
    PASSED_ON=() AUTO=0
    while (($#)); do
        flag=${1%%=*}
        [[ $flag != --auto ]] || AUTO=1
        if [[ ${flag#--} =~ ^($INPUT_FLAGS|$OUTPUT_FLAGS)$ ]]; then
            if [[ $1 == *=* ]]; then
                given=${1#*=}
            else
                (($# > 1)) || die "$1: has no value. Write it after the flag: $1 PATH."
                given=$2
                shift
            fi
            if [[ ${flag#--} =~ ^($OUTPUT_FLAGS)$ ]]; then resolve_output given; else resolve_input given; fi
            PASSED_ON+=("$flag" "$given")
        else
            PASSED_ON+=("$1")
        fi
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
(($# > 1)) || die "TASK: missing after the checkpoint. Use $TASK_NAMES."
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
COMMAND+=("$SCRIPT" --checkpoint "$CHECKPOINT" ${SCRIPT_FLAGS[@]+"${SCRIPT_FLAGS[@]}"} ${PASSED_ON[@]+"${PASSED_ON[@]}"})

if is_on "${DRY_RUN:-}"; then
    printf 'Dry run: nothing is started and nothing is written.\nCheckpoint: %s' "$CHECKPOINT"
    [[ -d $CHECKPOINT ]] || printf ' (missing)'
    printf '\n\nThe command:\n'
    print_command "${COMMAND[@]}"
else
    exec "${COMMAND[@]}"
fi
