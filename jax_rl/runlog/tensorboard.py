"""Scalars for TensorBoard, one point an update."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Scalars:
    """Writes the numbers of log rows as TensorBoard scalars.

    tensorboardX's `SummaryWriter` hands points to a thread and loses the last two minutes when the run is killed; this
    writes them through its `EventsWriter`, in the caller's thread. A mark in each session's file hides the points of
    earlier sessions past the update that this one starts from.

    Args:
        folder: where the event files go; each session adds one.
        resume_update: the update of the checkpoint that this session goes on from; None for a new run.
    """

    def __init__(self, folder: Path, resume_update: int | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # takes half a second
        from tensorboardX.proto.event_pb2 import SessionLog

        first = 0 if resume_update is None else resume_update + 1
        folder.mkdir(parents=True, exist_ok=True)
        # the name's own time stamp counts seconds; a file of the same name would be written over
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".from-{first}.{os.getpid()}")
        self._write(step=first, session_log=SessionLog(status=SessionLog.START))

    def write(self, update: int, prefix: str, row: Mapping[str, Any]) -> None:
        """Every finite number of `row` as `prefix/name`, on disk when this returns. Other values have no place here."""
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        values = [Summary.Value(tag=f"{prefix}/{name}", simple_value=value) for name, value in numbers.items()]
        self._write(step=update, summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()
