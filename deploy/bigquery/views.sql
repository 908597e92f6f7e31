-- What is current: as the views of the same names in deploy/duckdb, whose README tells them.

CREATE OR REPLACE VIEW tags.current_label_sets AS
SELECT model, REGEXP_REPLACE(label_set, r'-[0-9a-f]{8}$', '') AS name, label_set
FROM tags.runs, UNNEST(label_sets) AS label_set
WHERE status = 'finished'
QUALIFY ROW_NUMBER() OVER (
    PARTITION BY model, REGEXP_REPLACE(label_set, r'-[0-9a-f]{8}$', '')
    ORDER BY started_at DESC, label_set DESC
) = 1;

CREATE OR REPLACE VIEW tags.latest_embeddings AS
SELECT *
FROM tags.embeddings
WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY model, uri, id ORDER BY embedded_at DESC, version DESC) = 1;

CREATE OR REPLACE VIEW tags.latest_tags AS
SELECT * EXCEPT (place)
FROM (
    SELECT
        predictions.*,
        RANK() OVER (
            PARTITION BY predictions.label_set, predictions.model, uri, id
            ORDER BY embedded_at DESC, version DESC
        ) AS place
    FROM tags.predictions AS predictions
    JOIN tags.current_label_sets AS current_sets
        ON predictions.model = current_sets.model
        AND predictions.label_set = current_sets.label_set
)
WHERE place = 1 AND rank >= 1;
