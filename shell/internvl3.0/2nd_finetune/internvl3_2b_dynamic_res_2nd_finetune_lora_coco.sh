#!/usr/bin/env bash
# Finetunes InternVL3-2B on the COCO captions (Karpathy split) with LoRA on the language model. Writes an adapter.
#
#   GPUS=8 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl3.0/2nd_finetune/internvl3_2b_dynamic_res_2nd_finetune_lora_coco.sh
#
# shell/data/coco_caption.json names the images and captions, which are expected in data/coco/.
# Settings, and flags after the script's name, as explained in shell/lib/launch.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../lib/launch.sh"

setting GPUS 8
setting BATCH_SIZE 512
setting PER_DEVICE_BATCH_SIZE 4
GRADIENT_ACC=auto # BATCH_SIZE / (PER_DEVICE_BATCH_SIZE x GPUS x NNODES), which has to be whole
input_path MODEL pretrained/InternVL3-2B
input_path META_PATH shell/data/coco_caption.json
output_path OUTPUT_DIR work_dirs/internvl_chat_v3/internvl3_2b_dynamic_res_2nd_finetune_lora_coco

# What differs from the trainer's defaults (internvl/train/arguments.py).
RECIPE=(
    --freeze_llm True --freeze_mlp True --freeze_backbone True
    --use_llm_lora 128
    --share_image_prefix True # five captions an image: each image goes through the model once
    --num_train_epochs 1
    --learning_rate 4e-5 --weight_decay 0.01 --lr_scheduler_type cosine --warmup_ratio 0.03
    --save_steps 200 --save_total_limit 1
)

launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_finetune.py \
    --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
    "${RECIPE[@]}" -- "$@"
