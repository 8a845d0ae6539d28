#!/usr/bin/env bash
# Trains InternVL2-2B on the score of its own captions: CIDEr-D of answers it draws about the habitat images. Starts from the
# adapter that lora.sh wrote and trains its LoRA on.
#
#   GPUS=1 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.0/habitat_2b_finetune/cider.sh
#   MODEL=pretrained/InternVL2-2B bash shell/internvl2.0/habitat_2b_finetune/cider.sh       # from a model: new LoRA
#   bash shell/internvl2.0/habitat_2b_finetune/cider.sh --reward CIDEr-D:1.0 exact:0.5      # docs/reward.md
#
# BATCH_SIZE counts images; about each one five answers are drawn (--num_samples).
#
# From the environment: GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH
# OUTPUT_DIR DEEPSPEED PRECISION DRY_RUN (explained in shell/lib/launch.sh). Any flag of the script may follow the launcher's
# name, and wins.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../lib/launch.sh"

setting GPUS 1
setting BATCH_SIZE 24
setting PER_DEVICE_BATCH_SIZE 4
GRADIENT_ACC=auto # BATCH_SIZE / (PER_DEVICE_BATCH_SIZE x GPUS x NNODES), which has to be whole
input_path MODEL log/habitat/lora_annots_1
input_path META_PATH shell/data/habitat.json
output_path OUTPUT_DIR log/habitat/cider

# What differs from the trainer's defaults (internvl/train/arguments.py, internvl/train/reward_arguments.py).
RECIPE=(
    --freeze_llm True --freeze_mlp True --freeze_backbone True
    --use_llm_lora 128 --lora_dropout 0.0 # answers are drawn without dropout
    --reward CIDEr-D:1.0 --num_samples 5 --sample_max_new_tokens 60
    --num_train_epochs 3
    --learning_rate 1e-5 --lr_scheduler_type cosine --warmup_ratio 0.03
    --save_steps 50 --save_total_limit 1
)

launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_reward.py \
    --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
    "${RECIPE[@]}" -- "$@"
