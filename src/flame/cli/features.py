"""`flame features`: feature stores made from tables, and what is in one."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from flame.cli import options

TEXT = "Makes the folder that the `file` store reads, and tells what is in one."

EXAMPLES = """
flame features import MODEL_DIR --items items.parquet --users users.parquet --events events.parquet
flame features info MODEL_DIR/features
"""

IMPORT_TEXT = """\
Makes a feature store from tables, each a .parquet or .csv file or a folder of them. Items have a column `id` and one
for each item field of the model, users the same with user fields, events `user`, `item`, `action` and `timestamp`
(seconds). The store appears complete or not at all.
"""

IMPORT_EXAMPLES = """
flame features import MODEL_DIR --items items.parquet --users users.parquet --events events.parquet
flame features import MODEL_DIR --items items.csv --events events/ --output features/ --overwrite
"""

INFO_EXAMPLES = """
flame features info MODEL_DIR/features
flame features info features/ --json
"""


def add(commands: Any) -> None:
    """Adds the command and its two parts."""
    parser = options.command(commands, "features", "import and inspect feature stores", TEXT, EXAMPLES)
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_import(parts)
    _add_info(parts)


def _add_import(parts: Any) -> None:
    parser = options.command(
        parts, "import", "make a store from tables", IMPORT_TEXT, IMPORT_EXAMPLES, options.config_options()
    )
    parser.add_argument("model", metavar="MODEL_DIR", help=options.MODEL_HELP + "; its schema is what counts")
    for table in ("items", "users", "events"):
        parser.add_argument(f"--{table}", type=Path, metavar="TABLE", help=f"table of {table}, or a folder of them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the store (MODEL_DIR/features)")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that is there")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON line")
    parser.set_defaults(run=run_import)


def _add_info(parts: Any) -> None:
    parser = options.command(parts, "info", "what is in a store", "Tells what is in a feature store.", INFO_EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the store")
    parser.add_argument("--json", action="store_true", help="print it as one JSON line")
    parser.set_defaults(run=run_info)


def run_import(args: Namespace) -> int:
    """Imports and prints what was written and what was filled in."""
    config = options.configure(args)

    from dataclasses import asdict

    from flame.bench.progress import bar
    from flame.engine.package import load
    from flame.features.importer import import_features
    from flame.features.store import FOLDER

    package = load(args.model, allow_code=config.engine.allow_code)
    folder = options.output_folder(args.output, package.path, FOLDER)
    with bar() as show:
        report = import_features(
            package.spec.input,
            folder,
            items=args.items,
            users=args.users,
            events=args.events,
            overwrite=args.overwrite,
            progress=show,
        )
    _print({"store": str(folder), **asdict(report)}, args.json)
    return 0


def run_info(args: Namespace) -> int:
    """Prints counts, fields and sizes of a store."""
    options.configure(args)

    from flame.features.store.format import read_manifest

    manifest = read_manifest(args.folder)
    content = {
        "store": str(args.folder),
        "format": manifest.format,
        "schema": manifest.fingerprint,
        "items": manifest.items,
        "users": manifest.users,
        "events": manifest.events,
        "item_fields": [field.name for field in manifest.input.item],
        "user_fields": [field.name for field in manifest.input.user],
        "actions": manifest.input.actions,
        "bytes": sum(file.bytes for file in manifest.files.values()),
    }
    _print(content, args.json)
    return 0


def _print(content: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(content))
        return
    for name, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        elif isinstance(value, int):
            value = f"{value:,}"
        print(f"{name.replace('_', ' '):<20}{value}")
