#!/usr/bin/env bash
# Keep the cluster's state in a Redis on the head's disk, on loopback: Ray resumes from it after a crash or reboot.
set -euo pipefail

command -v redis-server > /dev/null || {
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y redis-server
}
conf=/etc/redis/redis.conf
# The last of repeated settings counts. Ray uses port 6379.
sudo grep -q '^# detect-ai$' "$conf" || sudo tee -a "$conf" > /dev/null << 'CONF'
# detect-ai
bind 127.0.0.1
port 6380
appendonly yes
CONF
sudo systemctl enable redis-server
sudo systemctl restart redis-server
