"""Runs in the environment of avidtools: reads a report with its data model and prints what it understood."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from avidtools.datamodels.report import Report

report = Report.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
artifact = report.affects.artifacts[0]
print(
    json.dumps(
        [
            report.problemtype.classof.value,
            artifact.type.value,
            len(report.metrics),
            str(report.reported_date),
        ]
    )
)
