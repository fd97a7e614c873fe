#!/usr/bin/env bash
# Train under slurm: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# On SIGTERM, SIGUSR1 or SIGHUP (sbatch --signal=B:USR1@120) the training saves, a batch job is queued again, and this
# script ends with status 75. Give --resume from the first: it starts where nothing is saved.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2; exit 2; }
partition=$1 job=$2 config=$3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
CONVNEXT_DENSE_PREEMPTED=$(mktemp -p "${SLURM_SUBMIT_DIR:-.}" .preempted.XXXXXX)  # where all nodes see it
export CONVNEXT_DENSE_PREEMPTED
trap 'rm -f "$CONVNEXT_DENSE_PREEMPTED"' EXIT
# shellcheck disable=SC2086  # SRUN_ARGS is several words
srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "${@:4}" &
launcher=$!
trap 'kill -USR1 $launcher 2> /dev/null || true' TERM USR1 HUP  # srun passes it on to every task
status=0
wait $launcher || status=$?
while kill -0 $launcher 2> /dev/null; do  # a signal ended the wait, not the training
    status=0
    wait $launcher || status=$?
done
[ -s "$CONVNEXT_DENSE_PREEMPTED" ] || exit "$status"
[ -z "${SLURM_JOB_ID:-}" ] || scontrol requeue "$SLURM_JOB_ID"
exit 75
