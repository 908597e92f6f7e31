# The Python workers, and the pod that launches a job: the same packages in both, or a job breaks
# where its steps are unpickled. Build from the repository's root:
#   docker build -f deploy/flink/worker.Dockerfile -t REGISTRY/beamtag-worker:0.1.0 .
# PyPI's own wheels of torch bring CUDA; the node brings the driver.
FROM apache/beam_python3.11_sdk:2.77.0 AS beam

FROM python:3.11-slim
COPY --from=beam /opt/apache/beam /opt/apache/beam
WORKDIR /opt/beamtag
COPY setup.py pyproject.toml README.md LICENSE constraints.txt ./
COPY pipelines pipelines
COPY transforms transforms
COPY deploy/flink/launch.sh deploy/flink/
RUN pip install --no-cache-dir -c constraints.txt '.[s3,heic,hf]'
# Beam's program would make an environment of its own for every worker.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
ENTRYPOINT ["/opt/apache/beam/boot"]
CMD ["--worker_pool"]
