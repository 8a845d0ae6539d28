#!/usr/bin/env bash
# Finetunes InternVL2-2B on the COCO captions (Karpathy split) with LoRA on the language model. Writes an adapter.
#
#   GPUS=1 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.0/2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora_coco.sh
#   DRY_RUN=1 bash shell/internvl2.0/2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora_coco.sh
#
# shell/data/coco_caption.json names the images and captions, which are expected in data/coco/.
#
# From the environment: GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH
# OUTPUT_DIR DEEPSPEED PRECISION DRY_RUN (explained in shell/lib/launch.sh). Any flag of the finetune script may follow the
# script's name, and wins.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../lib/launch.sh"

setting GPUS 8
setting BATCH_SIZE 512
setting PER_DEVICE_BATCH_SIZE 4
GRADIENT_ACC=auto # BATCH_SIZE / (PER_DEVICE_BATCH_SIZE x GPUS x NNODES), which has to be whole
input_path MODEL pretrained/InternVL2-2B
input_path META_PATH shell/data/coco_caption.json
output_path OUTPUT_DIR work_dirs/internvl_chat_v2_0/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora_coco

# What differs from the trainer's defaults (internvl/train/arguments.py).
RECIPE=(
    --freeze_llm True --freeze_mlp True --freeze_backbone True
    --use_llm_lora 128 # with alpha of twice the rank (--lora_alpha)
    --share_image_prefix True # five captions an image: each image goes through the model once
    --num_train_epochs 1
    --learning_rate 4e-5 --weight_decay 0.01 --lr_scheduler_type cosine --warmup_ratio 0.03
    --save_steps 200 --save_total_limit 1
)

launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_finetune.py \
    --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
    "${RECIPE[@]}" -- "$@"
