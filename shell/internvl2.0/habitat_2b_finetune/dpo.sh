#!/usr/bin/env bash
# Trains InternVL2-2B on preferences: rows with an answer and a worse, "rejected" one, such as tools/make_preferences.py makes
# of the model's own captions. Starts from the adapter that lora.sh wrote and trains its LoRA on.
#
#   python tools/make_preferences.py log/habitat/lora_annots_1 shell/data/habitat.json --out log/habitat/pairs
#   GPUS=1 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.0/habitat_2b_finetune/dpo.sh
#   bash shell/internvl2.0/habitat_2b_finetune/dpo.sh --objective mpo                       # docs/reward.md
#
# From the environment: GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH
# OUTPUT_DIR DEEPSPEED PRECISION DRY_RUN (explained in shell/lib/launch.sh). Any flag of the script may follow the launcher's
# name, and wins.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../lib/launch.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../lib/launch.sh"

setting GPUS 1
setting BATCH_SIZE 16
setting PER_DEVICE_BATCH_SIZE 4
GRADIENT_ACC=auto # BATCH_SIZE / (PER_DEVICE_BATCH_SIZE x GPUS x NNODES), which has to be whole
input_path MODEL log/habitat/lora_annots_1
input_path META_PATH log/habitat/pairs/meta.json
output_path OUTPUT_DIR log/habitat/dpo

# What differs from the trainer's defaults (internvl/train/arguments.py, internvl/train/reward_arguments.py).
RECIPE=(
    --freeze_llm True --freeze_mlp True --freeze_backbone True
    --use_llm_lora 128 --lora_dropout 0.0 # answers are judged without dropout
    --objective dpo --beta 0.1
    --num_train_epochs 1
    --learning_rate 5e-6 --lr_scheduler_type cosine --warmup_ratio 0.03
    --save_steps 200 --save_total_limit 1
)

launch torchrun --nproc_per_node="$GPUS" internvl/train/internvl_chat_reward.py \
    --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR" \
    --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC" \
    "${RECIPE[@]}" -- "$@"
