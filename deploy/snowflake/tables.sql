-- In the schema of your choice; an account's administrator has made the storage integration.

CREATE FILE FORMAT IF NOT EXISTS beamtag_parquet
    TYPE = PARQUET USE_VECTORIZED_SCANNER = TRUE USE_LOGICAL_TYPE = TRUE;

CREATE STAGE IF NOT EXISTS beamtag
    URL = 'gcs://bucket/tags/'
    STORAGE_INTEGRATION = beamtag
    FILE_FORMAT = (FORMAT_NAME = 'beamtag_parquet');

-- `stage_file` is a row's path in the bucket, in which its model, label set and day stand.

CREATE TABLE IF NOT EXISTS embeddings (
    uri VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    id VARCHAR,
    modality VARCHAR NOT NULL,
    content_sha256 VARCHAR NOT NULL,
    width INTEGER,
    height INTEGER,
    text_windows INTEGER,
    unused VARCHAR,
    bytes INTEGER NOT NULL,
    embedding ARRAY NOT NULL,
    run_id VARCHAR NOT NULL,
    embedded_at TIMESTAMP_LTZ NOT NULL,
    stage_file VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS predictions (
    uri VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    id VARCHAR,
    label VARCHAR,
    label_id VARCHAR,
    path VARCHAR,
    rank INTEGER NOT NULL,
    score FLOAT,
    similarity FLOAT,
    run_id VARCHAR NOT NULL,
    tagged_at TIMESTAMP_LTZ NOT NULL,
    embedded_at TIMESTAMP_LTZ NOT NULL,
    stage_file VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS failures (
    uri VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    id VARCHAR,
    stage VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    message VARCHAR NOT NULL,
    retryable BOOLEAN NOT NULL,
    model VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    failed_at TIMESTAMP_LTZ NOT NULL,
    stage_file VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS runs (record VARIANT);
