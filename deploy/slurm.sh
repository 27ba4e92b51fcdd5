#!/bin/bash
# Pretrain on several nodes of a Slurm cluster: `sbatch --nodes 2 deploy/slurm.sh` in the project,
# whose folder all nodes see. Set launch.nodes, launch.processes (GPUs of a node) and
# launch.strategy in params.yaml first; launch.rendezvous stays empty.
#SBATCH --job-name=gptmill
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
# A job that was requeued continues from its last checkpoint. One that failed is tried again so often.
tries=3

dvc repro "${@:-pretrain}" && exit
status=$?
if [ "${SLURM_RESTART_COUNT:-0}" -lt "$tries" ]; then
    echo "requeued after status $status"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
