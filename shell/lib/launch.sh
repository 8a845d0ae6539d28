# shellcheck shell=bash
# What all finetune launchers do. A launcher sources this file, states its settings and its RECIPE, and ends with
# launch_finetune "$@".
#
# Settings come, in rising order of strength, from the launcher, from the environment
#   GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH OUTPUT_DIR
#   DEEPSPEED (a file, or none)   PRECISION (auto, bf16, fp16, fp32)   DRY_RUN (1: say what would be done, do nothing)
# and from the flags after the launcher's name, which are handed on to the finetune script.

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=install.sh
source "$REPO_ROOT/shell/lib/install.sh"
# shellcheck source-path=SCRIPTDIR source=batch.sh
source "$REPO_ROOT/shell/lib/batch.sh"
# shellcheck source-path=SCRIPTDIR source=torchrun.sh
source "$REPO_ROOT/shell/lib/torchrun.sh"

FINETUNE_SCRIPT=internvl/train/internvl_chat_finetune.py

# The same in every recipe. A recipe, and after it the user, overrides any of them by naming it again.
FINETUNE_DEFAULTS=(
    --conv_style internlm2-chat
    --force_image_size auto # 448, or the checkpoint's own size when that is smaller
    --down_sample_ratio 0.5
    --drop_path_rate 0.0
    --vision_select_layer -1
    --dynamic_image_size True
    --ps_version v2
    --eval_strategy no
    --save_strategy steps
    --logging_steps 1
    --do_train True
    --grad_checkpoint auto
    --group_by_length True
    --report_to tensorboard
)

GIVEN_FLAGS=' ' # names of the flags after the launcher's name, each between spaces
PASSED_ON=()    # those flags with their values, as the finetune script gets them

launch_finetune() {
    setting NNODES 1
    setting NODE_RANK 0
    setting PRECISION auto
    [[ -z ${DEEPSPEED:-} || $DEEPSPEED == none ]] || resolve_input DEEPSPEED
    read_flags "$@"
    cd -- "$REPO_ROOT" || exit

    # What costs nothing is checked first: nobody should wait for an installation to learn of a typing mistake.
    batch_arithmetic
    check_nodes
    if is_on "${DRY_RUN:-}"; then
        find_python
        detect_device 2>/dev/null || assume_cpu 'PyTorch is not installed yet: this is the plan for a CPU.'
    else
        check_model_and_meta
        ensure_python
        detect_device || die "$PYTHON: cannot say what device this machine has (the reason is above)." \
            "Repair the installation, then run this again."
    fi
    ((!USE_CPU)) || assume_cpu
    check_device
    choose_precision
    choose_deepspeed
    finetune_command
    if is_on "${DRY_RUN:-}"; then
        print_plan
    else
        check_meta_inputs
        run_training
    fi
}

# ---- what the user asked for ----------------------------------------------------------------------------------------

# read_flags FLAG...: fills PASSED_ON and GIVEN_FLAGS. A flag that says the same as a setting changes the setting, so
# that the checks, the arithmetic and the log follow it.
read_flags() {
    local flag value setting
    USE_CPU=0
    GRADIENT_ACC=''
    while (($#)); do
        flag=${1%%=*}
        flag=${flag//-/_} # --output-dir is --output_dir to the finetune script
        flag=${flag#__}
        case $1 in
            --*) GIVEN_FLAGS+="$flag " ;;
            *) flag='' ;;
        esac
        case $flag in
            model_name_or_path) setting=MODEL ;;
            meta_path) setting=META_PATH ;;
            output_dir) setting=OUTPUT_DIR ;;
            deepspeed) setting=DEEPSPEED ;;
            resume_from_checkpoint) setting=RESUME ;;
            per_device_train_batch_size) setting=PER_DEVICE_BATCH_SIZE ;;
            gradient_accumulation_steps) setting=GRADIENT_ACC ;;
            use_cpu) setting=USE_CPU ;;
            *)
                PASSED_ON+=("$1")
                shift
                continue
                ;;
        esac
        if [[ $1 == *=* ]]; then
            value=${1#*=}
        elif (($# > 1)) && [[ $2 != --* ]]; then
            value=$2
            shift
        elif [[ $flag == use_cpu || $flag == resume_from_checkpoint ]]; then
            value=True
        else
            die "--$flag: has no value. Write it after the flag: --$flag VALUE."
        fi
        shift
        printf -v "$setting" '%s' "$value"
        case $setting in
            MODEL | META_PATH | RESUME) resolve_input "$setting" ;;
            DEEPSPEED)
                [[ -n $value && $value != none ]] || continue # a setting only: the flag itself takes nothing but a file
                resolve_input "$setting"
                ;;
            OUTPUT_DIR) resolve_output "$setting" ;;
            USE_CPU) if is_on "$value"; then USE_CPU=1; else USE_CPU=0; fi ;;
        esac
        [[ $setting == USE_CPU ]] || value=${!setting}
        PASSED_ON+=("--$flag" "$value")
    done
}

# is_given FLAG: whether the user passes this flag himself.
is_given() {
    [[ $GIVEN_FLAGS == *" ${1#--} "* ]]
}

# batch_arithmetic: sets GRADIENT_ACC from BATCH_SIZE, or BATCH_SIZE from --gradient_accumulation_steps.
batch_arithmetic() {
    if [[ -z $GRADIENT_ACC ]]; then
        GRADIENT_ACC=$(gradient_accumulation "$BATCH_SIZE" "$PER_DEVICE_BATCH_SIZE" "$GPUS" "$NNODES")
        return
    fi
    check_positive --gradient_accumulation_steps "$GRADIENT_ACC" 4
    check_positive PER_DEVICE_BATCH_SIZE "$PER_DEVICE_BATCH_SIZE" 4
    check_positive GPUS "$GPUS"
    check_positive NNODES "$NNODES"
    BATCH_SIZE=$((GRADIENT_ACC * PER_DEVICE_BATCH_SIZE * GPUS * NNODES))
}

batch_line() {
    printf 'BATCH_SIZE %s = %s per device x %s x %s x %s' "$BATCH_SIZE" "$(plural "$PER_DEVICE_BATCH_SIZE" row rows)" \
        "$(plural "$GPUS" process processes)" "$(plural "$NNODES" node nodes)" \
        "$(plural "$GRADIENT_ACC" 'accumulation step' 'accumulation steps')"
}

check_nodes() {
    [[ $NODE_RANK =~ ^(0|[1-9][0-9]{0,8})$ && $NODE_RANK -lt $NNODES ]] ||
        die "NODE_RANK: expected a number from 0 to $((NNODES - 1)) (NNODES is $NNODES), found '$NODE_RANK'." \
            "Give each node its own number, the first one 0."
    if ((NNODES > 1)) && [[ -z ${MASTER_ADDR:-} ]]; then
        die "MASTER_ADDR: not set, and NNODES is $NNODES. Set it on every node to the address of the node with NODE_RANK=0."
    fi
    setting MASTER_ADDR 127.0.0.1
    ((NNODES == 1)) || setting MASTER_PORT 34229 # the nodes have to agree on it, so it cannot be just any free one
    if [[ -n ${MASTER_PORT:-} ]]; then
        [[ $MASTER_PORT =~ ^[1-9][0-9]{0,4}$ && $MASTER_PORT -lt 65536 ]] ||
            die "MASTER_PORT: expected a port from 1 to 65535, found '$MASTER_PORT'. Unset it to get a free one."
    fi
}

# ---- what the machine can do ----------------------------------------------------------------------------------------

# assume_cpu [REMARK]: for --use_cpu True, and for a dry run before PyTorch is installed.
assume_cpu() {
    [[ -z ${1:-} ]] || say "$1"
    DEVICE=cpu BEST_PRECISION=fp32 NUM_DEVICES=0
}

# check_device: GPUS against what is there. On a CPU, GPUS is the number of processes.
check_device() {
    if [[ $DEVICE == cpu ]]; then
        share_cores "$GPUS"
    elif ((GPUS > NUM_DEVICES)) && ! is_on "${DRY_RUN:-}"; then
        die "GPUS: $GPUS asked for, and this machine has $NUM_DEVICES. Set GPUS=$NUM_DEVICES, or CUDA_VISIBLE_DEVICES to" \
            "more devices."
    fi
    [[ -n ${MASTER_PORT:-} ]] || MASTER_PORT=$(free_port)
}

# choose_precision: turns PRECISION=auto into what the device does best, and refuses what it cannot do.
choose_precision() {
    case $PRECISION in
        auto) PRECISION=$BEST_PRECISION ;;
        fp16)
            [[ $DEVICE != cpu ]] || die "PRECISION: fp16 asked for, and a CPU cannot train in it. Use PRECISION=fp32."
            ;;
        bf16)
            [[ $DEVICE == cpu || $BEST_PRECISION == bf16 ]] ||
                die "PRECISION: bf16 asked for, and this machine's GPUs do not have it. Use PRECISION=fp16."
            ;;
        fp32) ;;
        *) die "PRECISION: expected auto, bf16, fp16 or fp32, found '$PRECISION'. Use PRECISION=auto." ;;
    esac
}

# choose_deepspeed: ZeRO-1 on CUDA. On a CPU it only costs time, so it has to be asked for.
choose_deepspeed() {
    if [[ -z ${DEEPSPEED+set} && $DEVICE == cuda ]]; then
        DEEPSPEED=shell/deepspeed/zero_stage1_config.json
    fi
    [[ ${DEEPSPEED:-none} != none ]] || DEEPSPEED=''
}

# ---- the command ----------------------------------------------------------------------------------------------------

# add_flags FLAG VALUE...: appends to FINETUNE_FLAGS what the user does not pass himself.
add_flags() {
    while (($#)); do
        is_given "$1" || FINETUNE_FLAGS+=("$1" "$2")
        shift 2
    done
}

# finetune_command: sets COMMAND.
finetune_command() {
    local cores
    cores=$(cpu_cores)
    FINETUNE_FLAGS=()
    add_flags --model_name_or_path "$MODEL" --meta_path "$META_PATH" --output_dir "$OUTPUT_DIR"
    add_flags "${FINETUNE_DEFAULTS[@]}" --dataloader_num_workers $((cores < 4 ? cores : 4))
    add_flags "${RECIPE[@]}"
    add_flags --per_device_train_batch_size "$PER_DEVICE_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACC"
    # The two exclude each other: a user who passes one of them decides about both.
    if ! is_given --bf16 && ! is_given --fp16; then
        case $PRECISION in
            fp32) add_flags --bf16 False --fp16 False ;;
            *) add_flags "--$PRECISION" True ;;
        esac
    fi
    [[ $DEVICE != cpu ]] || add_flags --use_cpu True
    [[ -z $DEEPSPEED ]] || add_flags --deepspeed "$DEEPSPEED"

    torchrun_command
    COMMAND=("${TORCHRUN[@]}" "$FINETUNE_SCRIPT" "${FINETUNE_FLAGS[@]}" ${PASSED_ON[@]+"${PASSED_ON[@]}"})
}

# ---- the files it reads ---------------------------------------------------------------------------------------------

check_model_and_meta() {
    [[ -d $MODEL ]] ||
        die "$MODEL: there is no such folder. Download the checkpoint with \"bash tools/download_pretrained.sh\", or try" \
            "the shipped tiny base with MODEL=pretrained/InternVL2-Tiny."
    [[ -f $MODEL/config.json ]] ||
        die "$MODEL: holds no config.json, so it is not a checkpoint. Set MODEL to the folder that config.json is in," \
            "or download it again with \"bash tools/download_pretrained.sh\"."
    [[ -f $META_PATH ]] ||
        die "$META_PATH: there is no such file. Set META_PATH to the JSON file that lists your data sets; copy" \
            "shell/data/habitat.json to start one."
    [[ -z ${DEEPSPEED:-} || $DEEPSPEED == none || -f $DEEPSPEED ]] ||
        die "$DEEPSPEED: there is no such file. Set DEEPSPEED to a file in shell/deepspeed/, or to none."
}

# meta_inputs: prints one line for each annotation file and image folder in the meta file: data set, tab, what it is,
# tab, path. Only what is needed to name them is checked here; the finetune script checks the rest.
meta_inputs() {
    "$PYTHON" -I -S -X utf8 - "$META_PATH" <<'PYTHON'
import json
import sys

meta_path = sys.argv[1]


def refuse(where, message):
    print(f"{meta_path}{where}: {message}", file=sys.stderr)
    sys.exit(2)


try:
    with open(meta_path, encoding="utf-8-sig") as file:
        meta = json.load(file)
except json.JSONDecodeError as error:
    refuse(f":{error.lineno}", f"not valid JSON ({error.msg}, column {error.colno}). Correct that line.")
except UnicodeDecodeError as error:
    refuse("", f"not UTF-8 text ({error}). Save it as UTF-8.")
except (RecursionError, ValueError) as error:
    refuse("", f"not valid JSON ({error}). Correct the file.")
if not isinstance(meta, dict) or not all(isinstance(entry, dict) for entry in meta.values()):
    refuse("", "expected an object of data sets, each an object itself. Follow shell/data/habitat.json.")
for name, entry in meta.items():
    annotations = entry.get("annotation")
    annotations = annotations if isinstance(annotations, list) else [annotations]
    for what, path in [*(("annotation", path) for path in annotations), ("root", entry.get("root"))]:
        # Anything else is for the finetune script to refuse; a name with a line break does not fit on a line here.
        if isinstance(path, str) and path and not set(name + path) & {"\n", "\t"}:
            print(*(text.encode("utf-8", "replace").decode() for text in (name, what, path)), sep="\t")
PYTHON
}

check_meta_inputs() {
    local name what path inputs
    inputs=$(meta_inputs)
    while IFS=$'\t' read -r name what path; do
        [[ -z $name || -e $path ]] ||
            die "$META_PATH:$name: its $what '$path' is not there. Put it there, or correct the path" \
                "(paths in a meta file are relative to $REPO_ROOT)."
    done <<<"$inputs"
}

# input_line WHAT PATH [NAME]: one line of the dry run's list.
input_line() {
    local missing=''
    [[ -e $2 ]] || missing=' (missing)'
    printf '    %-11s %s%s%s\n' "$1" "$2" "$missing" "${3:+  [$3]}"
}

print_plan() {
    local name what path inputs=''
    if [[ -f $META_PATH ]]; then
        inputs=$(meta_inputs)
    fi
    printf 'Dry run: nothing is started and nothing is written.\n\n'
    printf '%s\n' "$(batch_line)"
    printf 'Device: %s, precision %s' "$DEVICE" "$PRECISION"
    [[ $DEVICE == cpu ]] || printf ', GPUS %s of the %s on this machine' "$GPUS" "$NUM_DEVICES"
    printf '\nOutput: %s\n\nFiles it would read:\n' "$OUTPUT_DIR"
    input_line model "$MODEL/config.json"
    input_line meta "$META_PATH"
    while IFS=$'\t' read -r name what path; do
        [[ -z $name ]] || input_line "$what" "$path" "$name"
    done <<<"$inputs"
    [[ -z $DEEPSPEED ]] || input_line deepspeed "$DEEPSPEED"
    printf '\nThe torchrun command:\n'
    print_command "${COMMAND[@]}"
}

# ---- the run --------------------------------------------------------------------------------------------------------

# keep_log LOG: passes its input on and appends it to LOG. It outlives a signal, to keep the training's last words.
# Only for the end of a pipe: it replaces the shell it runs in.
keep_log() {
    trap '' INT TERM HUP USR1
    exec tee -a -- "$1"
}

# run_training: runs COMMAND, with a copy of all it prints in OUTPUT_DIR/training_log.txt, and ends with its status.
run_training() {
    local log=$OUTPUT_DIR/training_log.txt job status signal reason
    reason=$({ mkdir -p -- "$OUTPUT_DIR" && touch -- "$log"; } 2>&1) ||
        die "$OUTPUT_DIR: cannot be written ($reason). Set OUTPUT_DIR to a folder where you may write."
    {
        batch_line
        printf '\n'
        print_command "${COMMAND[@]}"
    } | tee -a -- "$log"

    # The training runs as a background job while this shell waits, because bash acts on a signal only between
    # foreground commands: a plain "kill" of the launcher would otherwise wait for the training to end. Job control gives
    # the job a process group of its own, so a signal goes to all of it, and keeps Ctrl-C working in it. The shells in
    # between stay alive for the exit status (a caught signal is back to normal in the commands they start).
    # USR1 is a batch system's warning before it takes the machine.
    # Descriptor 3 carries stdout past the copy of stderr, so that each stream stays what it was.
    set -m
    (
        set +e
        trap : INT TERM HUP USR1
        {
            trap : INT TERM HUP USR1
            "${COMMAND[@]}" </dev/null 2>&1 >&3 3>&- | keep_log "$log" >&2 3>&-
            exit "${PIPESTATUS[0]}"
        } 3>&1 | keep_log "$log"
        exit "${PIPESTATUS[0]}"
    ) &
    job=$!
    set +m
    INTERRUPTED=0
    for signal in INT TERM HUP USR1; do
        # shellcheck disable=SC2064 # the job's number is meant to be filled in now
        trap "INTERRUPTED=1; kill -s $signal -- -$job 2>/dev/null || true" "$signal"
    done
    while true; do
        status=0
        wait "$job" || status=$?
        ((INTERRUPTED)) || break # a signal ends the wait, not the training
        INTERRUPTED=0
    done
    exit "$status"
}
