#!/usr/bin/env bash
# Makes pretrained/InternVL2-Tiny from nothing: renders rooms, makes a small InternVL2 with random weights and its own
# vocabulary, and trains all of it with this project's trainer. About 40 minutes on two cores.
#
#   bash shell/tiny/pretrain.sh
#   LLM=qwen3 PRECISION=fp32 NUM_PICTURES=6000 bash shell/tiny/pretrain.sh     # pretrained/InternVL3_5-Tiny
#   NUM_PICTURES=2000 MODEL_DIR=/tmp/tiny bash shell/tiny/pretrain.sh --num_train_epochs 1     # a quick look
#
# The scenes come from other seeds than those of data/habitat, and the answers are in another style (terse lists and short
# answers), so that LoRA on the habitat captions has something real to learn.
#
# From the environment, beside the usual (shell/lib/launch.sh): NUM_PICTURES, LLM (internlm2, qwen2 or qwen3), and MODEL_DIR,
# where the result goes.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../lib/launch.sh"

setting NUM_PICTURES 16000
setting LLM internlm2
WORK=work_dirs/tiny-$LLM
case $LLM in
    internlm2)
        output_path MODEL_DIR pretrained/InternVL2-Tiny
        MAKE=() TOKENIZER_FILES=(tokenizer.model)
        ;;
    *)
        output_path MODEL_DIR pretrained/InternVL3_5-Tiny
        # Stored in half the bytes, like the published weights. All published members share one vision encoder, too.
        MAKE=(--llm "$LLM" --dtype bfloat16 --vision pretrained/InternVL2-Tiny)
        TOKENIZER_FILES=(vocab.json merges.txt)
        ;;
esac
setting GPUS 1
setting BATCH_SIZE 32
setting PER_DEVICE_BATCH_SIZE 32
GRADIENT_ACC=auto # BATCH_SIZE / (PER_DEVICE_BATCH_SIZE x GPUS x NNODES), which has to be whole
setting PRECISION bf16 # autocast with float32 weights; a CPU with AVX-512 or AMX is twice as fast in it
setting DEEPSPEED none
input_path MODEL "$WORK/random"
input_path META_PATH work_dirs/tiny/meta.json
output_path OUTPUT_DIR "$WORK/pretrain"

# train FLAG...: one run, in a process of its own. The recipe of both says what differs from the trainer's defaults.
train() {
    local recipe=(
        --save_full_model True
        --max_seq_length 1024
        --weight_decay 0.05 --lr_scheduler_type cosine --warmup_ratio 0.03
        --grad_checkpoint False # the model is small, so memory is not a concern
        --logging_steps 10 --save_steps 500 --save_total_limit 1
    )
    (launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_finetune.py \
        --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
        --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
        "${recipe[@]}" -- "$@")
}

if is_on "${DRY_RUN:-}"; then
    train "$@"
    exit
fi
ensure_python
cd -- "$REPO_ROOT"
if [[ ! -f work_dirs/tiny/data/train.jsonl ]]; then
    "$PYTHON" tools/render_habitat.py --out work_dirs/tiny/data --style pretrain --num-train "$NUM_PICTURES" --seed 0
fi
# The vocabulary has to cover both styles: what the base is taught and what it will be finetuned on.
"$PYTHON" tools/make_tiny_base.py "$WORK/random" --corpus work_dirs/tiny/data/train.jsonl \
    --corpus data/habitat/train.jsonl "${MAKE[@]}"
printf '%s\n' '{"rooms": {"root": "work_dirs/tiny/data/", "annotation": "work_dirs/tiny/data/train.jsonl"}}' \
    >work_dirs/tiny/meta.json
train --num_train_epochs 3 --learning_rate 1e-3 "$@"
if [[ $LLM == internlm2 ]]; then
    # Its vision encoder started from nothing: a second run, again with its learning rate going down to zero, sees every
    # room once more in another order.
    MODEL=$OUTPUT_DIR OUTPUT_DIR=$OUTPUT_DIR-again
    train --num_train_epochs 1 --learning_rate 7e-4 --seed 43 "$@"
fi
mkdir -p -- "$MODEL_DIR"
for file in model.safetensors config.json generation_config.json preprocessor_config.json processor_config.json \
    tokenizer.json tokenizer_config.json; do
    cp -- "$OUTPUT_DIR/$file" "$MODEL_DIR/"
done
cp -- "$OUTPUT_DIR"/*.py "$MODEL_DIR/"
for file in "${TOKENIZER_FILES[@]}"; do
    cp -- "$WORK/random/$file" "$MODEL_DIR/"
done
say "The base is in $MODEL_DIR."
