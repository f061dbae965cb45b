"""Run folders on disk."""

from ditbench.records.files import read_json, set_aside, write_json
from ditbench.records.record import MEASURED, SHOWN, Run, read_run

__all__ = ["MEASURED", "SHOWN", "Run", "read_json", "read_run", "set_aside", "write_json"]
