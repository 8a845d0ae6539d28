#!/usr/bin/env bash
# Serves what a finetune made with real servers, on the CPU, and compares their captions with evaluate.sh's.
#
#   bash tests/serving/run.sh                                  # everything, about 25 minutes the first time
#   bash tests/serving/run.sh --only 'vllm merged'             # one row of the table: "<engine> <layout>"
#   MODEL=pretrained/InternVL3_5-Tiny bash tests/serving/run.sh # a member with Qwen3
#
# Trains the tiny base on the habitat mini set with 6 tiles, merges and converts it, and asks for greedy captions of the
# 100 val images and, where ../shared/coco_mini (or INTERNVL_SERVING_PHOTOS) is, of its real photos, which have several
# tiles. Prints a table and writes it to WORK/serving.json; status 1 when a caption differs.
#
# From the environment: INTERNVL_SERVING_ENV (the servers' environment, default tests/serving/.venv), INTERNVL_SERVING_WORK
# (models and results, default a folder below tests/serving/work). The models are made anew when what they are made of has changed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../shell/lib/common.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../shell/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=../../shell/lib/install.sh
source "$REPO_ROOT/shell/lib/install.sh"
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$REPO_ROOT/tests/serving/environment.sh"

input_path MODEL pretrained/InternVL2-Tiny
BASE=$MODEL
output_path INTERNVL_SERVING_WORK "tests/serving/work/${BASE##*/}"
input_path INTERNVL_SERVING_PHOTOS ../shared/coco_mini
cd -- "$REPO_ROOT"
WORK=$INTERNVL_SERVING_WORK
PHOTOS=$INTERNVL_SERVING_PHOTOS

# inputs_hash: prints a hash of all that the models depend on.
inputs_hash() {
    find internvl/model internvl/data internvl/train shell/lib shell/internvl2.0 data/habitat "$BASE" tools/merge_lora.py \
        tools/convert_to_hf.py -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum
}

make_models() {
    say "== Training, merge and conversion"
    MODEL=$BASE OUTPUT_DIR=$WORK/adapter GPUS=1 BATCH_SIZE=16 PER_DEVICE_BATCH_SIZE=16 \
        bash shell/internvl2.0/habitat_2b_finetune/lora.sh --overwrite_output_dir True --max_steps 180 \
        --learning_rate 1e-3 --grad_checkpoint False --save_strategy no --max_dynamic_patch 6 --use_cpu True
    "$PYTHON" tools/merge_lora.py "$WORK/adapter" "$WORK/merged" --overwrite
    "$PYTHON" tools/convert_to_hf.py "$WORK/merged" "$WORK/hf" --overwrite
}

# caption SET FLAG...: evaluate.sh's captions of the merged model in fp32, as $WORK/SET.
caption() {
    local set=$1
    shift
    rm -rf -- "${WORK:?}/$set"
    bash evaluate.sh "$WORK/merged" "$@" --dynamic --precision fp32 --min-new-tokens 0 --max-new-tokens 30 \
        --batch-size 25 --out-dir "$WORK/$set"
}

ensure_python
ensure_serving_python
mkdir -p -- "$WORK"
HASH=$(inputs_hash)
if [[ ! -f $WORK/inputs.txt || $(<"$WORK/inputs.txt") != "$HASH" ]]; then
    rm -f -- "$WORK/inputs.txt"
    make_models
    printf '%s\n' "$HASH" >"$WORK/inputs.txt"
fi
say "== Captions of evaluate.sh"
caption habitat caption-habitat
rm -rf -- "${WORK:?}/photos"
if [[ -d $PHOTOS ]]; then
    "$PYTHON" tests/serving/photo_rows.py "$PHOTOS" "$WORK/photos.jsonl"
    caption photos caption-custom --annotation "$WORK/photos.jsonl" --root "$PHOTOS/images"
fi
[[ -d $WORK/photos ]] || say "$PHOTOS: not there, so no real photos are compared."
say "== Servers"
# vLLM for evaluate.sh --engine vllm is found on the PATH.
PATH="$(dirname -- "$SERVING_PYTHON"):$PATH"
export PATH PROJECT_PYTHON=$PYTHON
exec "$SERVING_PYTHON" tests/serving/serve_and_compare.py "$WORK" "$BASE" "$@"
