"""Put a model's weights into this machine's caches: `bake.py MODEL [PRETRAINED]`."""

from __future__ import annotations

import sys

from transforms.modelstore import describe_model
from transforms.records import ModelSpec

name, *pretrained = (word for word in sys.argv[1:] if word)
print(describe_model(ModelSpec(name, pretrained[0] if pretrained else None)).model_id)
