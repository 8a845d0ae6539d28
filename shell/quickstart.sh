#!/usr/bin/env bash
# The whole main job on the shipped tiny base and the habitat mini set, on a CPU: score the base, finetune it with LoRA, score
# the adapter, merge it, wrap it as the documentation says, load it with AutoModel outside the repository, and compare.
#
#   bash shell/quickstart.sh
#   MODEL=pretrained/InternVL3_5-Tiny bash shell/quickstart.sh     # the shipped base with a Qwen3 language model
#
# Writes log/quickstart/summary.json and log/quickstart/report.html.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
source "$REPO_ROOT/shell/lib/install.sh"

input_path MODEL pretrained/InternVL2-Tiny
BASE=$MODEL
OUT=log/quickstart
MERGED=log_merged/quickstart
STAGES=() # name=seconds, in order

# stage NAME TITLE COMMAND...: runs the command, says what it is, and remembers its time.
stage() {
    local name=$1 title=$2 start=$SECONDS
    shift 2
    printf '\n== %s\n' "$title"
    "$@"
    STAGES+=("$name=$((SECONDS - start))")
}

evaluate() { # CHECKPOINT FOLDER
    bash evaluate.sh "$1" caption-habitat --dynamic --batch-size 25 --out-dir "$OUT/$2"
}

finetune() {
    # The launcher's recipe with what suits a model of 6 M parameters: a higher learning rate, more dropout.
    MODEL=$BASE OUTPUT_DIR=$OUT/adapter GPUS=1 BATCH_SIZE=16 PER_DEVICE_BATCH_SIZE=16 \
        bash shell/internvl2.0/habitat_2b_finetune/lora.sh \
        --overwrite_output_dir True --learning_rate 1e-3 --lora_dropout 0.1 --grad_checkpoint False --save_strategy no
}

merge() {
    "$PYTHON" tools/merge_lora.py "$OUT/adapter" "$MERGED" --overwrite
    cp "$BASE"/*.py "$MERGED"
    cp "$BASE/config.json" "$MERGED"
}

automodel() {
    # From a folder outside the repository, without it on the import path: nothing but transformers and the merged folder.
    local elsewhere images
    elsewhere=$(mktemp -d)
    images=("$REPO_ROOT"/data/habitat/images/val/*.jpg)
    (
        cd -- "$elsewhere"
        unset PYTHONPATH
        cp -- "$REPO_ROOT/tools/caption_with_automodel.py" .
        export HF_MODULES_CACHE="$elsewhere/modules"
        "$PYTHON" caption_with_automodel.py "$REPO_ROOT/$MERGED" "${images[@]}" --json captions.json
    )
    mv -- "$elsewhere/captions.json" "$REPO_ROOT/$OUT/automodel.json"
    rm -rf -- "$elsewhere"
}

cd -- "$REPO_ROOT"
cat <<TEXT
InternVL-Chat quickstart: score a tiny InternVL2, finetune it with LoRA, merge it, and load it with AutoModel.
About 6 minutes on two CPU cores, after the installation (3 to 10 minutes, once). Nothing but this folder is written to.
TEXT
stage install "Installation" ensure_python
rm -rf -- "$OUT"
mkdir -p -- "$OUT"
stage evaluate_base "Captions of the base, before" evaluate "$BASE" base
stage finetune "LoRA finetune on 5,750 rows" finetune
stage evaluate_adapter "Captions of the adapter, after" evaluate "$OUT/adapter" adapter_captions
stage merge "Merge and wrap" merge
stage evaluate_merged "Captions of the merged model" evaluate "$MERGED" merged
stage automodel "The merged folder through AutoModel, outside the repository" automodel
printf '\n== Summary\n'
"$PYTHON" tools/summarize_quickstart.py "$OUT" "${STAGES[@]}"
