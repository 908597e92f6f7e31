-- The pictures nearest to a text: `@vector` is what deploy/text_vector.py prints for it.

SELECT base.uri, 1 - distance AS similarity
FROM VECTOR_SEARCH(
    (SELECT uri, version, id, model, embedding FROM tags.embeddings WHERE model = @model),
    'embedding',
    (SELECT @vector AS embedding),
    top_k => 20,
    distance_type => 'COSINE'
)
JOIN tags.latest_embeddings AS latest
    ON latest.uri = base.uri
    AND latest.id IS NOT DISTINCT FROM base.id
    AND latest.version = base.version
    AND latest.model = base.model
ORDER BY distance;
