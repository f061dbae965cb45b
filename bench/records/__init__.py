"""Run folders on disk."""

from ditbench.records.files import file_sha256, read_json, replacing, set_aside, write_json
from ditbench.records.record import MEASURED, SHOWN, Run, read_run
from ditbench.records.run_folder import RunFolder

__all__ = [
    "MEASURED",
    "SHOWN",
    "Run",
    "RunFolder",
    "file_sha256",
    "read_json",
    "read_run",
    "replacing",
    "set_aside",
    "write_json",
]
