#!/usr/bin/env bash
# Finetunes InternVL2-2B to walk: an image and a goal, and the next action as JSON, with LoRA on the language model.
#
#   GPUS=1 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.0/habitat_2b_finetune/nav_lora.sh
#   DRY_RUN=1 bash shell/internvl2.0/habitat_2b_finetune/nav_lora.sh                    # says what it would do
#   bash shell/internvl2.0/habitat_2b_finetune/nav_lora.sh --max_steps 20 --seed 3      # flags of the finetune script
#
# shell/data/habitat_nav.json names the frames and actions: the small set that is shipped, until you edit it. Score with
# evaluate.sh OUTPUT_DIR answers-habitat_nav --match json:action --cluster episode_id, and let it walk with
# tools/drive_habitat.py OUTPUT_DIR.
#
# From the environment: GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH
# OUTPUT_DIR DEEPSPEED PRECISION DRY_RUN (explained in shell/lib/launch.sh). Any flag of the finetune script may follow the
# script's name, and wins.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../lib/launch.sh"

setting GPUS 1
setting BATCH_SIZE 16
setting PER_DEVICE_BATCH_SIZE 4
GRADIENT_ACC=auto # BATCH_SIZE / (PER_DEVICE_BATCH_SIZE x GPUS x NNODES), which has to be whole
input_path MODEL pretrained/InternVL2-2B
input_path META_PATH shell/data/habitat_nav.json
output_path OUTPUT_DIR log/habitat/nav_lora

# What differs from the trainer's defaults (internvl/train/arguments.py).
RECIPE=(
    --freeze_llm True --freeze_mlp True --freeze_backbone True
    --use_llm_lora 128 # with alpha of twice the rank (--lora_alpha)
    --max_dynamic_patch 1 # a frame is one tile
    --share_image_prefix True # several questions about a frame: each frame goes through the model once
    --num_train_epochs 2
    --learning_rate 4e-5 --weight_decay 0.01 --lr_scheduler_type cosine --warmup_ratio 0.03
    --save_steps 200 --save_total_limit 1
)

launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_finetune.py \
    --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
    "${RECIPE[@]}" -- "$@"
