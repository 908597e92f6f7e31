-- What is current of an output's tables: see README.md beside this file.
--
--   SET VARIABLE output = 'gs://bucket/tags';
--
-- first: the variable is read whenever a view is made or asked, its characters as they stand.

CREATE OR REPLACE MACRO beamtag_files(below) AS
    rtrim(regexp_replace(getvariable('output'), '([*?[])', '[\1]', 'g'), '/') || below;

-- Every row of every version, day and model. Columns of --carry are null where a run had none.

CREATE OR REPLACE VIEW all_embeddings AS
FROM read_parquet(beamtag_files('/embeddings/model=*/dt=*/shard-*.parquet'),
                  union_by_name = true, hive_partitioning = true,
                  hive_types = {'model': VARCHAR, 'dt': DATE});

CREATE OR REPLACE VIEW all_predictions AS
FROM read_parquet(beamtag_files('/predictions/label_set=*/model=*/dt=*/shard-*.parquet'),
                  union_by_name = true, hive_partitioning = true,
                  hive_types = {'label_set': VARCHAR, 'model': VARCHAR, 'dt': DATE});

CREATE OR REPLACE VIEW all_failures AS
FROM read_parquet(beamtag_files('/failures/dt=*/shard-*.parquet'),
                  union_by_name = true, hive_partitioning = true, hive_types = {'dt': DATE});

-- Of each item (uri and id) and model: the row that was embedded last.

CREATE OR REPLACE VIEW latest_embeddings AS
FROM all_embeddings
QUALIFY row_number() OVER (PARTITION BY model, uri, id ORDER BY embedded_at DESC, version DESC) = 1;

-- Of each model and label file (its `name`): the version that the last finished run used.

CREATE OR REPLACE VIEW current_label_sets AS
SELECT model, regexp_replace(label_set, '-[0-9a-f]{8}$', '') AS name,
       arg_max(label_set, (started_at, label_set)) AS label_set
FROM (SELECT json_extract_string(content, '$.model_id') AS model,
             unnest(json_keys(content, '$.label_sets')) AS label_set,
             json_extract_string(content, '$.started_at')::TIMESTAMPTZ AS started_at
      FROM read_text(beamtag_files('/runs/*.json'))
      WHERE json_extract_string(content, '$.status') = 'finished')
GROUP BY ALL;

-- Of each item, model and label file: the tags of the version that was embedded last. An item in
-- which nothing was found has no row.

CREATE OR REPLACE VIEW latest_tags AS
SELECT * EXCLUDE (place)
FROM (SELECT *, rank() OVER (PARTITION BY label_set, model, uri, id
                             ORDER BY embedded_at DESC, version DESC) AS place
      FROM all_predictions SEMI JOIN current_label_sets USING (model, label_set))
WHERE place = 1 AND rank >= 1;

-- Of each item and model: the last failure, unless the item was embedded after it. That of a tar as
-- a whole counts until one of its members has a newer row.

CREATE OR REPLACE VIEW open_failures AS
WITH told AS (
    SELECT model, uri, id, embedded_at AS told_at FROM all_embeddings
    UNION ALL
    SELECT model, uri, id, failed_at FROM all_failures
),
mended AS (
    SELECT model, uri, id, max(told_at) AS told_at
    FROM (SELECT model, uri, id, embedded_at AS told_at FROM all_embeddings
          UNION ALL
          SELECT model, left(uri, length(uri) - place - length(id) - 1), NULL, told_at
          FROM (SELECT *, position(reverse('#' || id || '.') IN reverse(uri)) AS place FROM told)
          WHERE place > 0)
    GROUP BY ALL
)
SELECT failure.*
FROM (FROM all_failures
      QUALIFY row_number() OVER (PARTITION BY model, uri, id
                                 ORDER BY failed_at DESC, version DESC) = 1) AS failure
ANTI JOIN mended
    ON mended.model = failure.model AND mended.uri = failure.uri
   AND mended.id IS NOT DISTINCT FROM failure.id AND mended.told_at > failure.failed_at;
