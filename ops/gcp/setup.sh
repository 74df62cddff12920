#!/usr/bin/env bash
# Create what cluster.yaml needs in a project: network, accounts, bucket, secrets. Changes nothing that exists
# except the roles, so it can run again: ops/gcp/setup.sh [VARIABLES], by default gcp.env.
set -euo pipefail
variables=${1:-./gcp.env}
if [ ! -f "$variables" ]; then
  echo "$variables: no such file: run \`cp ops/gcp/variables.env gcp.env\` in the checkout and fill it in" >&2
  exit 1
fi
# shellcheck source=ops/gcp/variables.env
. "$variables"
: "${PROJECT:?is empty in gcp.env}" "${BUCKET:?is empty in gcp.env}" "${REGION:?}"
export CLOUDSDK_CORE_PROJECT=$PROJECT CLOUDSDK_CORE_DISABLE_PROMPTS=1
head=detect-ai-head@$PROJECT.iam.gserviceaccount.com
worker=detect-ai-worker@$PROJECT.iam.gserviceaccount.com

# These reads may fail, for what does not exist; any other error stops the script.
exists() { "$@" > /dev/null 2>&1; }

gcloud services enable cloudresourcemanager.googleapis.com compute.googleapis.com iam.googleapis.com \
  iap.googleapis.com logging.googleapis.com monitoring.googleapis.com secretmanager.googleapis.com storage.googleapis.com

# Network: no machine has an external address; NAT lets them reach package indexes and the container registry.
exists gcloud compute networks describe detect-ai ||
  gcloud compute networks create detect-ai --subnet-mode=custom
exists gcloud compute networks subnets describe detect-ai --region="$REGION" ||
  gcloud compute networks subnets create detect-ai --network=detect-ai --region="$REGION" --range=10.10.0.0/20 \
    --enable-private-ip-google-access
exists gcloud compute routers describe detect-ai --region="$REGION" ||
  gcloud compute routers create detect-ai --network=detect-ai --region="$REGION"
exists gcloud compute routers nats describe detect-ai --router=detect-ai --region="$REGION" ||
  gcloud compute routers nats create detect-ai --router=detect-ai --region="$REGION" --auto-allocate-nat-external-ips \
    --nat-all-subnet-ip-ranges

# Firewall: NAME FROM PORTS. The network admits nothing else. SECURITY.md lists the processes behind the ports.
# 35.235.240.0/20: Identity-Aware Proxy. 130.211.0.0/22 and 35.191.0.0/16: Google's load balancers and health checks.
while read -r -u 3 name from ports; do
  exists gcloud compute firewall-rules describe "$name" ||
    gcloud compute firewall-rules create "$name" --network=detect-ai --target-tags=detect-ai "$from" --allow="$ports"
done 3<< 'RULES'
detect-ai-iap --source-ranges=35.235.240.0/20 tcp:22
detect-ai-balancer --source-ranges=130.211.0.0/22,35.191.0.0/16 tcp:8000
detect-ai-nodes --source-tags=detect-ai tcp:22,tcp:6379,tcp:8000,tcp:8076-8081,tcp:8404,tcp:8500,tcp:9101,tcp:10001-19999,tcp:30000-31000,tcp:32768-60999
RULES

# Accounts. `ray up` creates ray-autoscaler-sa-v1 and gives it far more roles than Ray needs; cluster.yaml does not use
# it, and it is disabled so that nobody else can use it.
for account in detect-ai-head detect-ai-worker ray-autoscaler-sa-v1; do
  exists gcloud iam service-accounts describe "$account@$PROJECT.iam.gserviceaccount.com" ||
    gcloud iam service-accounts create "$account"
done
gcloud iam service-accounts disable "ray-autoscaler-sa-v1@$PROJECT.iam.gserviceaccount.com"

# Roles in the project: ACCOUNT ROLE. Roles on the worker's account, the bucket and secrets follow.
while read -r -u 3 account role; do
  gcloud projects add-iam-policy-binding "$PROJECT" --member="serviceAccount:$account@$PROJECT.iam.gserviceaccount.com" \
    --role="$role" --condition=None > /dev/null
done 3<< 'ROLES'
detect-ai-head roles/compute.instanceAdmin.v1
detect-ai-head roles/logging.logWriter
detect-ai-head roles/monitoring.metricWriter
detect-ai-worker roles/logging.logWriter
detect-ai-worker roles/monitoring.metricWriter
ROLES
# Machines that the head starts run as the worker's account only.
gcloud iam service-accounts add-iam-policy-binding "$worker" --member="serviceAccount:$head" \
  --role=roles/iam.serviceAccountUser > /dev/null

# Bucket. Deleted and replaced objects can be restored for 30 days.
exists gcloud storage buckets describe "gs://$BUCKET" ||
  gcloud storage buckets create "gs://$BUCKET" --location="$REGION" --uniform-bucket-level-access \
    --public-access-prevention
lifecycle=$(mktemp)
trap 'rm -f "$lifecycle"' EXIT
echo '{"rule": [{"action": {"type": "Delete"}, "condition": {"daysSinceNoncurrentTime": 30}}]}' > "$lifecycle"
gcloud storage buckets update "gs://$BUCKET" --versioning --lifecycle-file="$lifecycle"
for account in "$head" "$worker"; do
  gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --member="serviceAccount:$account" \
    --role=roles/storage.objectUser > /dev/null
done

# Secrets: SECRET ACCOUNTS. Ray's token is created here; you create the others (docs/CLUSTER.md).
exists gcloud secrets describe detect-ai-ray-token ||
  openssl rand -hex 32 | gcloud secrets create detect-ai-ray-token --replication-policy=automatic --data-file=-
while read -r -u 3 secret accounts; do
  exists gcloud secrets describe "$secret" || continue
  for account in $accounts; do
    gcloud secrets add-iam-policy-binding "$secret" --role=roles/secretmanager.secretAccessor \
      --member="serviceAccount:$account@$PROJECT.iam.gserviceaccount.com" > /dev/null
  done
done 3<< 'SECRETS'
detect-ai-ray-token detect-ai-head detect-ai-worker
detect-ai-wandb detect-ai-head detect-ai-worker
detect-ai-hub detect-ai-head detect-ai-worker
detect-ai-api-keys detect-ai-head
SECRETS
echo "Ready. Next: make cluster-config cluster-check, then: ray up with the file that it writes"
