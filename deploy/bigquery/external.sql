-- The same tables over the files where they are: nothing is loaded but `runs`, every question reads
-- the bucket, and what a run has written is there at once. Or else tables.sql.

CREATE OR REPLACE EXTERNAL TABLE tags.embeddings (
    uri STRING,
    version STRING,
    id STRING,
    modality STRING,
    content_sha256 STRING,
    width INT64,
    height INT64,
    text_windows INT64,
    unused STRING,
    bytes INT64,
    embedding ARRAY<FLOAT64>,
    run_id STRING,
    embedded_at TIMESTAMP
)
WITH PARTITION COLUMNS (model STRING, dt DATE)
OPTIONS (
    format = 'PARQUET',
    uris = ['gs://bucket/tags/embeddings/*.parquet'],
    hive_partition_uri_prefix = 'gs://bucket/tags/embeddings',
    enable_list_inference = TRUE
);

CREATE OR REPLACE EXTERNAL TABLE tags.predictions (
    uri STRING,
    version STRING,
    id STRING,
    label STRING,
    label_id STRING,
    path STRING,
    rank INT64,
    score FLOAT64,
    similarity FLOAT64,
    run_id STRING,
    tagged_at TIMESTAMP,
    embedded_at TIMESTAMP
)
WITH PARTITION COLUMNS (label_set STRING, model STRING, dt DATE)
OPTIONS (
    format = 'PARQUET',
    uris = ['gs://bucket/tags/predictions/*.parquet'],
    hive_partition_uri_prefix = 'gs://bucket/tags/predictions'
);

CREATE OR REPLACE EXTERNAL TABLE tags.failures (
    uri STRING,
    version STRING,
    id STRING,
    stage STRING,
    reason STRING,
    message STRING,
    retryable BOOL,
    model STRING,
    run_id STRING,
    failed_at TIMESTAMP
)
WITH PARTITION COLUMNS (dt DATE)
OPTIONS (
    format = 'PARQUET',
    uris = ['gs://bucket/tags/failures/*.parquet'],
    hive_partition_uri_prefix = 'gs://bucket/tags/failures'
);

CREATE TABLE IF NOT EXISTS tags.runs (
    run_id STRING NOT NULL,
    model STRING NOT NULL,
    started_at TIMESTAMP NOT NULL,
    status STRING NOT NULL,
    label_sets ARRAY<STRING>
);
