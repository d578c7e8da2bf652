"""Run directories and the files in them: written whole, found again, read without torch."""

from wuneng.records.checksums import CHECKSUMS, verify, write_sealed_json
from wuneng.records.files import (
    append_jsonl,
    disk_errors,
    finite,
    read_json,
    read_jsonl,
    truncate_jsonl_after,
    write_json,
    write_text_atomic,
)
from wuneng.records.find import arm_names, find_model
from wuneng.records.runs import RUNS_ROOT, ArmDirectory, RunDirectory

__all__ = [
    "CHECKSUMS",
    "RUNS_ROOT",
    "ArmDirectory",
    "RunDirectory",
    "append_jsonl",
    "arm_names",
    "disk_errors",
    "find_model",
    "finite",
    "read_json",
    "read_jsonl",
    "truncate_jsonl_after",
    "verify",
    "write_json",
    "write_sealed_json",
    "write_text_atomic",
]
