#!/usr/bin/env bash
# Scores a checkpoint on a task: evaluate.sh CHECKPOINT TASK [FLAG...]. Run it without arguments for the usage.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=shell/lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/shell/lib/launch.sh"

# task, script, flags; of several rows that fit, the first one counts, and NAME stands for what fits the *
TASKS=(
    'caption         eval/caption/evaluate_caption.py  --datasets present'
    'caption-custom  eval/caption/evaluate_caption.py'
    'caption-train   eval/caption/evaluate_caption.py'
    'answers-custom  eval/answers/evaluate_answers.py'
    'answers-train   eval/answers/evaluate_answers.py'
    'answers-*       eval/answers/evaluate_answers.py  --datasets NAME'
    'caption-*       eval/caption/evaluate_caption.py  --datasets NAME'
)
TASK_NAMES='caption, caption-NAME (coco, flickr30k, nocaps, habitat), caption-custom, caption-train, answers-custom or answers-train'

usage() {
    cat <<USAGE
Usage: [GPUS=N] bash evaluate.sh CHECKPOINT TASK [FLAG...]

    GPUS=1 bash evaluate.sh pretrained/InternVL2-2B caption-coco --dynamic --auto
    GPUS=8 bash evaluate.sh log/habitat/lora_annots_1 caption-habitat
    bash evaluate.sh log/mine caption-custom --annotation val.jsonl --root data/mine --dynamic
    bash evaluate.sh log/mine caption-train --meta shell/data/habitat.json --limit 500
    bash evaluate.sh log/mine caption-coco --dynamic --engine vllm
    bash evaluate.sh log/mine answers-custom --annotation val.jsonl --root data/mine --match json:action

CHECKPOINT  a base model, a merged model, or the output folder of a finetune
TASK        caption-NAME: a data set of eval/caption/datasets.json (coco, flickr30k, nocaps, habitat)
            caption: all of them that are there
            caption-custom: a JSONL file of training rows, with --annotation FILE --root FOLDER
            caption-train: the training rows of a meta file, with --meta FILE
            answers-custom, answers-train, answers-NAME (habitat_nav): the same for answers that are right or wrong,
            with --match exact, choice, number, json:FIELD or regex:PATTERN
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
                SCRIPT_FLAGS=("${SCRIPT_FLAGS[@]/#NAME/"${1#*-}"}")
                return
                ;;
        esac
    done
    die "$1: there is no such task. Use $TASK_NAMES."
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
(($# > 1)) || die "TASK: missing after the checkpoint. Use $TASK_NAMES."
find_task "$2"
launch evaluation "$SCRIPT" ${SCRIPT_FLAGS[@]+"${SCRIPT_FLAGS[@]}"} -- "$1" "${@:3}"
