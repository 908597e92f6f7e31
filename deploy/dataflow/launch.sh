#!/usr/bin/env bash
# Submit a tag job to Dataflow with one GPU for each worker. Where it runs is said by the environment,
# what it does by arguments, which are those of `beamtag tag`, and win:
#   PROJECT=... REGION=... BUCKET=gs://... IMAGE=... SERVICE_ACCOUNT=... SUBNETWORK=... \
#     deploy/dataflow/launch.sh --config=gs://bucket/job.yaml
set -euo pipefail

: "${PROJECT:?the project that pays}" "${REGION:?such as us-central1}"
: "${BUCKET:?gs://bucket/folder of temporary files}" "${IMAGE:?what deploy/dataflow/Dockerfile made}"
: "${SERVICE_ACCOUNT:?the e-mail of the account of the workers}"
: "${SUBNETWORK:?regions/REGION/subnetworks/NAME, with Private Google Access}"
GPU=${GPU:-nvidia-l4}
MACHINE=${MACHINE:-g2-standard-8}
WORKERS=${WORKERS:-1}
MAX_WORKERS=${MAX_WORKERS:-10}
DISK_GB=${DISK_GB:-100}

exec "${BEAMTAG:-beamtag}" tag \
  --runner=DataflowRunner \
  --project="$PROJECT" \
  --region="$REGION" \
  --temp_location="$BUCKET/temp" \
  --staging_location="$BUCKET/staging" \
  --service_account_email="$SERVICE_ACCOUNT" \
  --subnetwork="$SUBNETWORK" \
  --no_use_public_ips \
  --sdk_container_image="$IMAGE" \
  --sdk_location=container \
  --worker_machine_type="$MACHINE" \
  --dataflow_service_options="worker_accelerator=type:$GPU;count:1;install-nvidia-driver" \
  --experiments=no_use_multiple_sdk_containers \
  --autoscaling_algorithm=THROUGHPUT_BASED \
  --num_workers="$WORKERS" \
  --max_num_workers="$MAX_WORKERS" \
  --disk_size_gb="$DISK_GB" \
  --device=cuda \
  "$@"
