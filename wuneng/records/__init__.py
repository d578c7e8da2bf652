"""Run directories and the files in them: written whole, found again, read without torch."""

from wuneng.records.checksums import (
    CHECKSUMS,
    read_self_sealed,
    verify,
    write_sealed_json,
    write_self_sealed,
)
from wuneng.records.files import (
    append_jsonl,
    disk_errors,
    finite,
    read_json,
    read_jsonl,
    truncate_jsonl_after,
    write_bytes_atomic,
    write_json,
    write_text_atomic,
)
from wuneng.records.find import find_model, find_source, may_be_on_the_hub, run_of
from wuneng.records.places import prove_writable, refuse_links, usable_directory
from wuneng.records.roles import ArmRoles, arm_names, arm_roles
from wuneng.records.runs import RUNS_ROOT, ArmDirectory, RunDirectory

__all__ = [
    "CHECKSUMS",
    "RUNS_ROOT",
    "ArmDirectory",
    "ArmRoles",
    "RunDirectory",
    "append_jsonl",
    "arm_names",
    "arm_roles",
    "disk_errors",
    "find_model",
    "find_source",
    "finite",
    "may_be_on_the_hub",
    "prove_writable",
    "read_json",
    "read_jsonl",
    "read_self_sealed",
    "refuse_links",
    "run_of",
    "truncate_jsonl_after",
    "usable_directory",
    "verify",
    "write_bytes_atomic",
    "write_json",
    "write_sealed_json",
    "write_self_sealed",
    "write_text_atomic",
]
