#!/usr/bin/env bash
# Finetunes all of InternVL2-2B but its vision tower on the habitat captions. Writes a whole model.
#
#   GPUS=1 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.0/habitat_2b_finetune/full.sh
#   DRY_RUN=1 bash shell/internvl2.0/habitat_2b_finetune/full.sh                    # says what it would do
#   bash shell/internvl2.0/habitat_2b_finetune/full.sh --max_steps 20 --seed 3      # flags of the finetune script
#
# shell/data/habitat.json names the images and captions: the small set that is shipped, until you edit it.
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
input_path META_PATH shell/data/habitat.json
output_path OUTPUT_DIR log/habitat/full_annots_1

# What differs from the trainer's defaults (internvl/train/arguments.py).
RECIPE=(
    --freeze_backbone True # the language model and the projector train
    --save_full_model True # an adapter cannot hold a language model that changed throughout
    --num_train_epochs 1
    --learning_rate 4e-5 --weight_decay 0.01 --lr_scheduler_type cosine --warmup_ratio 0.03
    --save_steps 200 --save_total_limit 1
)

launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_finetune.py \
    --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
    "${RECIPE[@]}" -- "$@"
