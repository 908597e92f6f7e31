#!/usr/bin/env bash
# Submit a tagging job to a Flink cluster and wait for its end; the exit status is the job's.
#
#   JOB_ENDPOINT=flink-jobserver:8099 PARALLELISM=2 deploy/flink/launch.sh \
#       --input='s3://bucket/archive/**/*.jpg' --labels=labels.yaml --output=s3://bucket/tags
#
# Any option of `beamtag tag` and of Beam may follow; what is given last counts.
set -euo pipefail

# Unquoted: it may be a command with arguments.
exec ${BEAMTAG:-beamtag} tag \
    --runner=PortableRunner \
    --job_endpoint="${JOB_ENDPOINT:?where the job server listens, such as flink-jobserver:8099}" \
    --parallelism="${PARALLELISM:?how many task slots the job takes}" \
    --environment_type=EXTERNAL \
    --environment_config="${WORKER_POOL:-localhost:50000}" \
    --environment_cache_millis=30000 \
    --sdk_worker_parallelism=1 \
    "$@"
