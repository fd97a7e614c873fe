#!/usr/bin/env bash
# Train on several GPUs of this machine: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: the same on each, with NNODES, NODE_RANK and MASTER_ADDR set.
# On SIGTERM, SIGUSR1, SIGHUP or SIGINT the training saves and this script ends with status 75: go on with --resume.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2; exit 2; }
config=$1 gpus=$2
CONVNEXT_DENSE_PREEMPTED=$(mktemp)  # the training writes to it if it is preempted; torchrun's status does not tell
export CONVNEXT_DENSE_PREEMPTED
trap 'rm -f "$CONVNEXT_DENSE_PREEMPTED"' EXIT
"${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}" &
launcher=$!
# torchrun passes SIGTERM on to the processes of the training, and waits 30 seconds for them; SIGUSR1 ends it alone.
trap 'kill -TERM $launcher 2> /dev/null || true' TERM USR1 HUP INT
status=0
wait $launcher || status=$?
while kill -0 $launcher 2> /dev/null; do  # a signal ended the wait, not the training
    status=0
    wait $launcher || status=$?
done
[ ! -s "$CONVNEXT_DENSE_PREEMPTED" ] || exit 75
exit "$status"
