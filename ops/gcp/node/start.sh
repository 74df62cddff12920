#!/usr/bin/env bash
# Start Ray on this machine under systemd. Ray's launcher calls it, and sets RAY_* variables that the container needs.
set -euo pipefail
: "${PROJECT:?}" "${STORAGE_ROOT:?}" "${RAY_NODE_TYPE_NAME:?expected from the launcher with autoscaler v2, which is the default}"

# Optional secrets end in `?`. Serving nodes get no keys of services that only training uses.
secrets='RAY_AUTH_TOKEN=detect-ai-ray-token'
case $RAY_NODE_TYPE_NAME in
  serving) ;;
  head) secrets+=' WANDB_API_KEY=detect-ai-wandb? HF_TOKEN=detect-ai-hub? DETECT_AI_API_KEYS=detect-ai-api-keys?' ;;
  *) secrets+=' WANDB_API_KEY=detect-ai-wandb? HF_TOKEN=detect-ai-hub?' ;;
esac

sudo install -d /etc/detect-ai
env | grep '^RAY_' | sudo tee /etc/detect-ai/ray.env > /dev/null
sudo tee /etc/detect-ai/node.conf > /dev/null << CONF
PROJECT=$PROJECT
STORAGE_ROOT=$STORAGE_ROOT
NODE_TYPE=$RAY_NODE_TYPE_NAME
LAUNCHER_HOME=$HOME
SECRETS="$secrets"
CONF
sudo install -m 644 ~/app/ops/systemd/detect-ai-ray.service /etc/systemd/system/

if [ "$RAY_NODE_TYPE_NAME" = head ]; then
  # Another image may have another Ray version, which cannot read the state of the old one.
  image=$(sudo docker image inspect --format '{{.Id}}' detect-ai-node)
  if [ "$(cat /etc/detect-ai/image 2> /dev/null)" != "$image" ]; then
    redis-cli -p 6380 flushall
    echo "$image" | sudo tee /etc/detect-ai/image > /dev/null
  fi
  sudo systemctl daemon-reload
  sudo systemctl enable detect-ai-ray
else
  # The autoscaler replaces a worker whose Ray has ended.
  sudo install -d /etc/systemd/system/detect-ai-ray.service.d
  printf '[Service]\nRestart=no\n' | sudo tee /etc/systemd/system/detect-ai-ray.service.d/worker.conf > /dev/null
  sudo systemctl daemon-reload
fi
sudo systemctl restart detect-ai-ray

ready() { sudo docker exec detect_ai ray health-check --address="${RAY_HEAD_IP:-127.0.0.1}:6379" > /dev/null 2>&1; }
for _ in $(seq 60); do
  if ready; then exit 0; fi
  sleep 3
done
sudo journalctl --unit detect-ai-ray --lines 50 --no-pager >&2
exit 1
