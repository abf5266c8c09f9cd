"""Write Snakemake's events as lines of JSON, for the screen of `reproduce` (`snakemake --logger ztw`)."""

from __future__ import annotations

import json
import logging
import os

from snakemake_interface_logger_plugins.base import LogHandlerBase

FIELDS = ("jobid", "job_id", "rule_name", "wildcards", "log", "reason", "rule_msg", "done", "total", "stats")


class LogHandler(LogHandlerBase):
    """Append each event to the file in the variable ZTW_EVENTS. A plain message gets its level as event."""

    writes_to_file = has_formatter = True
    has_filter = True  # keeps Snakemake from adding its filter for --quiet, which removes events
    writes_to_stream = needs_rulegraph = False
    baseFilename = os.environ.get("ZTW_EVENTS", os.devnull)  # noqa: N815 (the interface's name)

    def emit(self, record: logging.LogRecord) -> None:
        """Write an event."""
        event = str(getattr(record, "event", None) or record.levelname.lower())
        fields = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        line = json.dumps({"event": event, "message": record.getMessage(), **fields}, default=str)
        try:
            with open(self.baseFilename, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:  # a full disk
            self.handleError(record)
