#!/usr/bin/env bash
# Finetunes InternVL2_5-2B on your own data with LoRA on the language model. Writes an adapter.
#
#   GPUS=2 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.5/2nd_finetune/internvl2_5_2b_dynamic_res_2nd_finetune_lora.sh
#
# shell/data/internvl_1_2_finetune_custom.json names your images and conversations: edit it first.
# Settings, and flags after the script's name, as explained in shell/lib/launch.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../lib/launch.sh"

setting GPUS 2
setting BATCH_SIZE 128
setting PER_DEVICE_BATCH_SIZE 4
GRADIENT_ACC=auto # BATCH_SIZE / (PER_DEVICE_BATCH_SIZE x GPUS x NNODES), which has to be whole
input_path MODEL pretrained/InternVL2_5-2B
input_path META_PATH shell/data/internvl_1_2_finetune_custom.json
output_path OUTPUT_DIR work_dirs/internvl_chat_v2_5/internvl2_5_2b_dynamic_res_2nd_finetune_lora

# What differs from the trainer's defaults (internvl/train/arguments.py).
RECIPE=(
    --freeze_llm True --freeze_mlp True --freeze_backbone True
    --use_llm_lora 16 # the rank upstream takes for every size
    --max_seq_length 8192
    --num_train_epochs 1
    --learning_rate 4e-5 --weight_decay 0.01 --lr_scheduler_type cosine --warmup_ratio 0.03
    --save_steps 200 --save_total_limit 1
)

launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_finetune.py \
    --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
    "${RECIPE[@]}" -- "$@"
