#!/usr/bin/env bash
# Build the container of a node and its command `ray`: setup.sh IMAGE.
set -euo pipefail

timeout 300 bash -c 'until sudo docker info > /dev/null 2>&1; do sleep 3; done'
sudo docker build --tag detect-ai-node --build-arg IMAGE="$1" ~/app/image

# `ray` on the machine runs in the container. `ray down` calls `ray stop`: the unit must not start Ray again.
sudo tee /usr/local/bin/ray > /dev/null << 'RAY'
#!/usr/bin/env bash
if [ "${1-}" = stop ]; then exec sudo systemctl stop detect-ai-ray; fi
exec sudo docker exec -i detect_ai ray "$@"
RAY
sudo chmod 755 /usr/local/bin/ray
