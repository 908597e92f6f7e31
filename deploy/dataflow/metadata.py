"""Write metadata.json, the Flex Template's parameters: the tag job's options, from its parser."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipelines.config import option_name
from pipelines.flags import tag_parser

TARGET = Path(__file__).with_name("metadata.json")

NOT_OF_A_TEMPLATE = {
    "runner": "the launcher's",
    "detach": "main.py's",
    "explain": "runs nothing",
    "workers": "a local run's",
}
"""Options of the job that its template cannot have, and whose they are."""

WORKERS = {
    "dataflow_service_options": "Such as worker_accelerator=type:nvidia-l4;count:1;"
    "install-nvidia-driver: the workers' GPUs.",
}
"""Options of Beam that a launch has no field for."""


def metadata() -> dict[str, Any]:
    """The template's parameters, as `gcloud dataflow flex-template build` reads them."""
    actions = {name: action for action in tag_parser()._actions if (name := option_name(action))}
    return {
        "name": "Beamtag",
        "description": "Tag pictures by what is in them, with labels that are only words.",
        "streaming": False,
        "parameters": [
            *(
                parameter(name, action)
                for name, action in actions.items()
                if name not in NOT_OF_A_TEMPLATE
            ),
            *(
                {"name": name, "label": name, "helpText": text, "isOptional": True}
                for name, text in WORKERS.items()
            ),
        ],
    }


def parameter(name: str, action: argparse.Action) -> dict[str, Any]:
    """One option. None is required: any of them may stand in the file of `config`."""
    text = (action.help or "") % {**vars(action), "prog": "beamtag tag"}
    if isinstance(action, argparse._AppendAction):
        text = text.replace("may be given again", "for more than one use config")
    told: dict[str, Any] = {
        "name": name,
        "label": name,
        "helpText": text[:1].upper() + text[1:] + ".",
        "isOptional": True,
    }
    if action.nargs == 0:
        told["paramType"] = "BOOLEAN"
    elif action.choices:
        told["paramType"] = "ENUM"
        told["enumOptions"] = [{"value": word, "label": word} for word in map(str, action.choices)]
    return told


if __name__ == "__main__":
    TARGET.write_text(json.dumps(metadata(), indent=2) + "\n", encoding="utf-8")
