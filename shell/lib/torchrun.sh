# shellcheck shell=bash
# Starting one process per device. Needs common.sh; PYTHON is set by install.sh.
# shellcheck disable=SC2034 # what is set here is used by the scripts that source this file

# detect_device: sets DEVICE (cuda or cpu), BEST_PRECISION (bf16, fp16 or fp32) and NUM_DEVICES (0 on a CPU).
detect_device() {
    local answer
    answer=$("$PYTHON" -m internvl.device) || return
    read -r DEVICE BEST_PRECISION NUM_DEVICES <<<"$answer"
}

# share_cores PROCESSES: on a CPU, gives each process its share of the cores. Torchrun's own choice is one thread each.
share_cores() {
    local threads=$(($(cpu_cores) / $1))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
}

# free_port: prints a TCP port that nobody listens on, so that two runs on one machine do not meet.
free_port() {
    "$PYTHON" -I -S -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# torchrun_command: sets TORCHRUN to the words that start GPUS processes on this node; the script follows them.
# internvl.torchrun is torchrun with the exit status of the process that failed. A signal is passed on to the processes,
# which have SHUTDOWN_SECONDS to finish their step and save a checkpoint; so have those that are left when one died.
torchrun_command() {
    setting SHUTDOWN_SECONDS 120
    TORCHRUN=(
        "$PYTHON" -m internvl.torchrun
        "--nnodes=$NNODES" "--node_rank=$NODE_RANK" "--master_addr=$MASTER_ADDR"
        "--nproc_per_node=$GPUS" "--master_port=$MASTER_PORT"
        "--shutdown_timeout=$SHUTDOWN_SECONDS" "--signals_to_handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    )
}
