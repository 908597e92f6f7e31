"""Prints a text's vector in a model's space, as JSON: what to search stored pictures with.

python deploy/text_vector.py "a drawing of a cat" [--model=...] [--pretrained=...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from transforms.model import shared_text_model
from transforms.modelstore import DEMO_MODEL
from transforms.records import ModelSpec


def text_vector(text: str, model: str = DEMO_MODEL, pretrained: str | None = None) -> list[float]:
    """The L2-normalised vector of a text; `model` and `pretrained` are those of `beamtag tag`."""
    (vector,) = shared_text_model(ModelSpec(model, pretrained)).encode_texts([text])
    return [float(component) for component in vector]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text")
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--pretrained")
    options = parser.parse_args(argv)
    print(json.dumps(text_vector(options.text, options.model, options.pretrained)))


if __name__ == "__main__":
    main()
