"""`lmguide calibrate`: from records of answers with and without guidance to a gate that skips it at a bounded loss."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from lmguide.calibration import CalibrationReport, calibrate, read_records
from lmguide.cli.output import replacing
from lmguide.serialization import to_dict

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> None:
    """Calibrate; the report goes to stderr and the gate to stdout, so that a script can take the gate.

    Raises:
        OSError: The records cannot be read.
        ValueError: A record or a number is wrong.
    """
    with replacing(arguments.out) if arguments.out else nullcontext() as file:
        records = read_records(arguments.records)
        gate = calibrate(records, arguments.alpha, arguments.delta, arguments.conditional, arguments.statistic)
        line = json.dumps(to_dict(gate))
        if file is not None:
            print(line, file=file)
    print(CalibrationReport.of(gate, records), file=sys.stderr)
    print(line)
    print(f"Use it:  --guidance 'cfg:guidance_scale=1.5,gate={line}'", file=sys.stderr)
