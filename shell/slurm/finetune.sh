#!/usr/bin/env bash
#SBATCH --job-name=internvl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
# Submits a launcher to Slurm, on one node or several; what follows the launcher's name is handed on to it.
#
#   sbatch --nodes=4 shell/slurm/finetune.sh shell/internvl2.0/habitat_2b_finetune/lora.sh --max_steps 1000
#
# Slurm warns five minutes before it takes the nodes. The training then saves a checkpoint and ends, and the job is queued
# again: the same command continues from there. Settings of the launcher (MODEL, META_PATH, …) come from the environment
# that sbatch is called in. Submit it from the repository.
set -euo pipefail

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "SLURM_JOB_ID: is not set, so this is not a Slurm job. Submit it: sbatch shell/slurm/finetune.sh LAUNCHER." >&2
    exit 2
fi
LAUNCHER=${1:-}
if [[ ! -f $LAUNCHER ]]; then
    echo "$LAUNCHER: there is no such launcher below $PWD. Name a file of shell/internvl2.0/." >&2
    exit 2
fi

NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export NNODES=${SLURM_NNODES:-1}
export MASTER_ADDR=${NODES%%$'\n'*}
# Jobs that share a node must not meet: a port of the job's own.
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-1}}

STATUS=0
# srun of Slurm 22.05 and newer does not take the cores per task from sbatch.
CORES=${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}
# shellcheck disable=SC2016 # SLURM_PROCID is set on each node
srun --kill-on-bad-exit=1 ${CORES:+"$CORES"} bash -c 'NODE_RANK=$SLURM_PROCID exec bash "$@"' launcher "$@" || STATUS=$?
# 128 + USR1: it was warned, and has saved.
if ((STATUS == 138)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$STATUS"
