#!/usr/bin/env bash
# Remove what setup.sh created and any remaining machines, but not the bucket: ops/gcp/teardown.sh [VARIABLES].
# Run `ray down` for every cluster first: this removes the machines, network and accounts of all of them.
set -euo pipefail
variables=${1:-./gcp.env}
if [ ! -f "$variables" ]; then
  echo "$variables: no such file: run \`cp ops/gcp/variables.env gcp.env\` in the checkout and fill it in" >&2
  exit 1
fi
# shellcheck source=ops/gcp/variables.env
. "$variables"
: "${PROJECT:?is empty in gcp.env}" "${REGION:?}"
export CLOUDSDK_CORE_PROJECT=$PROJECT CLOUDSDK_CORE_DISABLE_PROMPTS=1

exists() { "$@" > /dev/null 2>&1; }

gcloud compute instances list --filter='tags.items=detect-ai' --format='value(name,zone.basename())' |
  while read -r name zone; do gcloud compute instances delete "$name" --zone="$zone" < /dev/null; done
! exists gcloud compute routers describe detect-ai --region="$REGION" ||
  gcloud compute routers delete detect-ai --region="$REGION"
for rule in detect-ai-iap detect-ai-balancer detect-ai-nodes; do
  ! exists gcloud compute firewall-rules describe "$rule" || gcloud compute firewall-rules delete "$rule"
done
! exists gcloud compute networks subnets describe detect-ai --region="$REGION" ||
  gcloud compute networks subnets delete detect-ai --region="$REGION"
! exists gcloud compute networks describe detect-ai || gcloud compute networks delete detect-ai
for account in detect-ai-head detect-ai-worker ray-autoscaler-sa-v1; do
  email=$account@$PROJECT.iam.gserviceaccount.com
  ! exists gcloud iam service-accounts describe "$email" || gcloud iam service-accounts delete "$email"
done
for secret in detect-ai-ray-token detect-ai-wandb detect-ai-hub detect-ai-api-keys; do
  ! exists gcloud secrets describe "$secret" || gcloud secrets delete "$secret"
done
echo "Removed. What is left costs as much as it stores: gcloud storage rm --recursive gs://${BUCKET:-}"
