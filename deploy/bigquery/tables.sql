-- Tables of BigQuery's own, which `load.py` fills: what is asked often. Or else external.sql.

CREATE TABLE IF NOT EXISTS tags.embeddings (
    uri STRING NOT NULL,
    version STRING NOT NULL,
    id STRING,
    modality STRING NOT NULL,
    content_sha256 STRING NOT NULL,
    width INT64,
    height INT64,
    text_windows INT64,
    unused STRING,
    bytes INT64 NOT NULL,
    embedding ARRAY<FLOAT64>,
    run_id STRING NOT NULL,
    embedded_at TIMESTAMP NOT NULL,
    model STRING,
    dt DATE
)
PARTITION BY dt
CLUSTER BY model, uri;

CREATE TABLE IF NOT EXISTS tags.predictions (
    uri STRING NOT NULL,
    version STRING NOT NULL,
    id STRING,
    label STRING,
    label_id STRING,
    path STRING,
    rank INT64 NOT NULL,
    score FLOAT64,
    similarity FLOAT64,
    run_id STRING NOT NULL,
    tagged_at TIMESTAMP NOT NULL,
    embedded_at TIMESTAMP NOT NULL,
    label_set STRING,
    model STRING,
    dt DATE
)
PARTITION BY dt
CLUSTER BY label_set, model, uri;

CREATE TABLE IF NOT EXISTS tags.failures (
    uri STRING NOT NULL,
    version STRING NOT NULL,
    id STRING,
    stage STRING NOT NULL,
    reason STRING NOT NULL,
    message STRING NOT NULL,
    retryable BOOL NOT NULL,
    model STRING NOT NULL,
    run_id STRING NOT NULL,
    failed_at TIMESTAMP NOT NULL,
    dt DATE
)
PARTITION BY dt
CLUSTER BY model, uri;

CREATE TABLE IF NOT EXISTS tags.runs (
    run_id STRING NOT NULL,
    model STRING NOT NULL,
    started_at TIMESTAMP NOT NULL,
    status STRING NOT NULL,
    label_sets ARRAY<STRING>
);
