#!/usr/bin/env bash
# Run Ray on one node in the foreground and, on the head, restore the service. Ends when a Ray process ends.
# All ports are fixed or in a fixed range: SECURITY.md lists them, setup.sh opens them between nodes.
set -euo pipefail
app=$(cd "$(dirname "$0")/../../.." && pwd)
# If it is unset, Ray gives each task as many threads as it has CPUs.
unset OMP_NUM_THREADS

options=(--block --object-manager-port=8076 --node-manager-port=8077 --runtime-env-agent-port=8078)
options+=(--metrics-export-port=8079 --dashboard-agent-grpc-port=8080 --dashboard-agent-listen-port=8081)
options+=(--min-worker-port=10002 --max-worker-port=19999)
if [ "${RAY_NODE_TYPE_NAME:?}" != head ]; then
  exec ray start --address="${RAY_HEAD_IP:?}:6379" "${options[@]}"
fi

# Exit status 2: bad input, such as settings of another release. Other errors, such as storage errors, may be temporary.
restore() {
  cd "$app"
  export RAY_ADDRESS=127.0.0.1:6379 PYTHONPATH=$app
  until ray health-check; do sleep 2; done
  while true; do
    python jobs/restore.py && return
    [ $? = 2 ] && return
    sleep 30
  done
}

# Without the launcher's file there is no autoscaler.
config=~/ray_bootstrap_config.yaml
if [ -f "$config" ]; then options+=(--autoscaling-config="$config"); fi
ray start --head --port=6379 --dashboard-host=127.0.0.1 --ray-client-server-port=10001 "${options[@]}" &
ray=$!
restore &
trap 'kill "$ray" $! 2> /dev/null || true' EXIT
trap 'exit 143' TERM INT
wait "$ray"
