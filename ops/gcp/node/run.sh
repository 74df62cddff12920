#!/usr/bin/env bash
# Run the container of this node in the foreground: the unit detect-ai-ray calls it as root, with node.conf.
set -euo pipefail
umask 077
run=${RUNTIME_DIRECTORY:?set by systemd}
state=${STATE_DIRECTORY:?set by systemd}/ray
app="$LAUNCHER_HOME/app"

# shellcheck disable=SC2086 # a list
python3 "$app/ops/gcp/node/fetch_secrets.py" "$PROJECT" $SECRETS > "$run/secrets.env"

options=(--rm --name detect_ai --network host --ulimit nofile=65536:65536)
# Ray's object store is in shared memory, by default 30% of it.
options+=(--shm-size "$(awk '/^MemTotal/ {print int($2 * 0.35)}' /proc/meminfo)k")
options+=(--env-file /etc/detect-ai/ray.env --env-file "$run/secrets.env")
options+=(--env RAY_AUTH_MODE=token --env DETECT_AI_AUTOSCALES=1 --env "DETECT_AI_STORAGE_ROOT=$STORAGE_ROOT")
# Serve's HAProxy has a higher throughput than its own proxy (docs/SERVING.md). It gives a client 75 s for the next bytes
# of a request instead of an hour; a front proxy with header and body timeouts is required (SECURITY.md).
options+=(--env RAY_SERVE_ENABLE_HA_PROXY=1 --env RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S=75)
# A replica that goes waits for its clients, which are HAProxies: they know after a second or two. Ray's default of 30 s is
# for balancers that ask replicas themselves.
options+=(--env RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=10)
# Workers, and so replicas, survive ten minutes without a head; Ray's default is one.
options+=(--env RAY_gcs_rpc_server_reconnect_timeout_s=600)
# The default of an hour for a machine that does not come up would be too long for the next node type.
options+=(--env RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S=1200)
options+=(--volume "$app:/home/ray/app:ro" --volume "$state:/tmp/ray")
if [ "$NODE_TYPE" = head ]; then
  options+=(--env RAY_REDIS_ADDRESS=127.0.0.1:6380)
  # ssh accepts only a key that its user alone can read; the container's user is 1000.
  for name in ray_bootstrap_config.yaml ray_bootstrap_key.pem; do
    install --mode 600 --owner 1000 "$LAUNCHER_HOME/$name" "$run/$name"
    options+=(--volume "$run/$name:/home/ray/$name:ro")
  done
fi
if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null; then options+=(--gpus all); fi

docker rm --force detect_ai > /dev/null 2>&1 || true
# Ray's folder outlives the container: Prometheus on the head reads the list of nodes there. Of earlier runs only logs
# stay, for a week.
install --directory --mode 755 --owner 1000 "$state"
find "$state" -mindepth 2 -maxdepth 2 ! -name logs -exec rm -rf {} +
find "$state" -type f -mtime +6 -delete
exec docker run "${options[@]}" detect-ai-node bash /home/ray/app/ops/gcp/node/ray.sh
