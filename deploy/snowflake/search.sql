-- The pictures nearest to a text. `vector` is what deploy/text_vector.py prints for it, and
-- `dimensions` its length.

SELECT
    uri,
    VECTOR_COSINE_SIMILARITY(
        embedding::VECTOR(FLOAT, <% dimensions %>), <% vector %>::VECTOR(FLOAT, <% dimensions %>)
    ) AS similarity
FROM latest_embeddings
WHERE model = '<% model %>'
ORDER BY similarity DESC
LIMIT 20;
