"""`flame bench table`, `merge` and `plot`: what is made of documents that were measured before."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from flame.cli import options

TABLE_TEXT = """\
Prints the table of a document of `flame bench engine` on a GPU as Markdown. With --into it is written between the lines
<!-- NAME --> and <!-- /NAME --> of a file, where NAME is the document's file name without its ending.
"""

TABLE_EXAMPLES = """
flame bench table benchmarks/results/engine-h100.json
flame bench table benchmarks/results/engine-h100.json --into README.md
"""

MERGE_TEXT = """\
Makes one document of several of the same benchmark on the same chip. Rows of a later document take the place of those
of an earlier one with the same scenario, users and variant, or the same policy and load.
"""

MERGE_EXAMPLES = """
flame bench merge benchmarks/results/engine-h100.json base.json long.json hstu.json
"""

PLOT_TEXT = """\
Draws a document of `flame bench engine` on a GPU (pairs per second of every variant, a panel for each launch) or of
`flame bench orchestrator` (launches of every executor over time, time in use and padding by policy).
"""

PLOT_EXAMPLES = """
flame bench plot benchmarks/results/engine-h100.json benchmarks/results/engine-h100.png
flame bench plot benchmarks/results/orchestrator-cpu.json benchmarks/results/orchestrator-cpu.png
"""


def add(parts: Any) -> None:
    """Adds the three."""
    table = options.command(parts, "table", "a table of what was measured", TABLE_TEXT, TABLE_EXAMPLES)
    table.add_argument("document", type=Path, metavar="FILE", help="JSON of flame bench engine")
    table.add_argument("--into", type=Path, metavar="MARKDOWN", help="write it there between its two comments")
    table.set_defaults(run=run_table)
    merge = options.command(parts, "merge", "several documents as one", MERGE_TEXT, MERGE_EXAMPLES)
    merge.add_argument("output", type=Path, metavar="OUTPUT", help="JSON to write")
    merge.add_argument("documents", type=Path, nargs="+", metavar="FILE", help="JSON of flame bench")
    merge.set_defaults(run=run_merge)
    plot = options.command(parts, "plot", "a plot of what was measured", PLOT_TEXT, PLOT_EXAMPLES)
    plot.add_argument("document", type=Path, metavar="FILE", help="JSON of flame bench engine or orchestrator")
    plot.add_argument("output", type=Path, metavar="PNG", help="picture to write")
    plot.set_defaults(run=run_plot)


def run_table(args: Namespace) -> int:
    """Prints or writes the table."""
    from flame.bench import report, table

    text = table.engine(report.read(args.document))
    if args.into is None:
        print(text)
    else:
        table.update(args.into, args.document.stem, text)
    return 0


def run_merge(args: Namespace) -> int:
    """Writes the documents as one."""
    from flame.bench import report

    report.write(report.merged([report.read(file) for file in args.documents]), args.output)
    return 0


def run_plot(args: Namespace) -> int:
    """Draws the document."""
    from flame.bench import ladder_plot, report
    from flame.bench.orchestrator import plot

    document = report.read(args.document)
    draw = plot.occupancy if document["bench"] == "orchestrator" else ladder_plot.ladder
    draw(document, args.output)
    return 0
