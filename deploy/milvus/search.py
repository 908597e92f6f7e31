"""Prints the stored items nearest to a text: a line each, similarity and uri, best first.

    python deploy/milvus/search.py "a photo of a cat" --milvus=http://milvus:19530 \\
        --collection=photos --model=ViT-B-32 --pretrained=laion2b_s34b_b79k [--limit=10]

`--model` and `--pretrained` are those of `beamtag tag`, whose vectors the collection has.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from pymilvus import MilvusClient

from transforms.model import shared_text_model
from transforms.modelstore import DEMO_MODEL
from transforms.records import ModelSpec


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text")
    parser.add_argument("--milvus", required=True, help="http://host:19530, or a file")
    parser.add_argument("--collection", required=True)
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--pretrained")
    parser.add_argument("--limit", type=int, default=10)
    options = parser.parse_args(argv)
    spec = ModelSpec(options.model, options.pretrained)
    vectors = shared_text_model(spec).encode_texts([options.text])
    client = MilvusClient(options.milvus, token=os.environ.get("MILVUS_TOKEN", ""))
    client.load_collection(options.collection)
    (found,) = client.search(
        options.collection, vectors.tolist(), limit=options.limit, output_fields=["uri"]
    )
    for hit in found:
        print(f"{hit['distance']:.4f}  {hit['entity']['uri']}")
    client.close()


if __name__ == "__main__":
    main()
