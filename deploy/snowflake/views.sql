-- What is current: as the views of the same names in deploy/duckdb, whose README tells them.

CREATE OR REPLACE VIEW all_embeddings AS
SELECT
    *,
    SPLIT_PART(SPLIT_PART(stage_file, '/model=', 2), '/', 1) AS model,
    TO_DATE(SPLIT_PART(SPLIT_PART(stage_file, '/dt=', 2), '/', 1)) AS dt
FROM embeddings;

CREATE OR REPLACE VIEW all_predictions AS
SELECT
    *,
    SPLIT_PART(SPLIT_PART(stage_file, '/label_set=', 2), '/', 1) AS label_set,
    SPLIT_PART(SPLIT_PART(stage_file, '/model=', 2), '/', 1) AS model,
    TO_DATE(SPLIT_PART(SPLIT_PART(stage_file, '/dt=', 2), '/', 1)) AS dt
FROM predictions;

CREATE OR REPLACE VIEW all_failures AS
SELECT *, TO_DATE(SPLIT_PART(SPLIT_PART(stage_file, '/dt=', 2), '/', 1)) AS dt
FROM failures;

CREATE OR REPLACE VIEW current_label_sets AS
SELECT
    record:model_id::VARCHAR AS model,
    REGEXP_REPLACE(sets.key, '-[0-9a-f]{8}$', '') AS name,
    sets.key AS label_set
FROM runs, LATERAL FLATTEN(input => record:label_sets) AS sets
WHERE record:status::VARCHAR = 'finished'
QUALIFY ROW_NUMBER() OVER (
    PARTITION BY record:model_id::VARCHAR, REGEXP_REPLACE(sets.key, '-[0-9a-f]{8}$', '')
    ORDER BY record:started_at::TIMESTAMP_TZ DESC, sets.key DESC
) = 1;

CREATE OR REPLACE VIEW latest_embeddings AS
SELECT *
FROM all_embeddings
QUALIFY ROW_NUMBER() OVER (PARTITION BY model, uri, id ORDER BY embedded_at DESC, version DESC) = 1;

CREATE OR REPLACE VIEW latest_tags AS
SELECT * EXCLUDE (place)
FROM (
    SELECT
        predictions.*,
        RANK() OVER (
            PARTITION BY predictions.label_set, predictions.model, uri, id
            ORDER BY embedded_at DESC, version DESC
        ) AS place
    FROM all_predictions AS predictions
    JOIN current_label_sets AS current_sets
        ON predictions.model = current_sets.model
        AND predictions.label_set = current_sets.label_set
) AS ranked
WHERE place = 1 AND rank >= 1;
