-- One day's files take the place of the rows that the tables have of it, all or nothing; done twice
-- it changes nothing. `dt` is a regular expression: 2026-01-02, or .* for every day.

BEGIN;

DELETE FROM embeddings WHERE stage_file RLIKE '.*/dt=<% dt %>/.*';

COPY INTO embeddings FROM @beamtag/embeddings/
    PATTERN = '.*dt=<% dt %>/shard-.*[.]parquet'
    MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE
    INCLUDE_METADATA = (stage_file = METADATA$FILENAME)
    FORCE = TRUE;

DELETE FROM predictions WHERE stage_file RLIKE '.*/dt=<% dt %>/.*';

COPY INTO predictions FROM @beamtag/predictions/
    PATTERN = '.*dt=<% dt %>/shard-.*[.]parquet'
    MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE
    INCLUDE_METADATA = (stage_file = METADATA$FILENAME)
    FORCE = TRUE;

DELETE FROM failures WHERE stage_file RLIKE '.*/dt=<% dt %>/.*';

COPY INTO failures FROM @beamtag/failures/
    PATTERN = '.*dt=<% dt %>/shard-.*[.]parquet'
    MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE
    INCLUDE_METADATA = (stage_file = METADATA$FILENAME)
    FORCE = TRUE;

DELETE FROM runs;

COPY INTO runs (record) FROM (SELECT $1 FROM @beamtag/runs/)
    FILE_FORMAT = (TYPE = JSON)
    FORCE = TRUE;

COMMIT;
