"""How many programs of a kernel a multiprocessor holds at once, from what the compiler reports.

As CUDA's occupancy calculator counts it (``cuda_occupancy.h`` of the toolkit): registers are given
to whole warps in pieces of 256, in each of a multiprocessor's four parts apart; shared memory goes
in pieces of 128 bytes, and a program is charged a kilobyte more than it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Processor:
    """Limits of one multiprocessor; shared memory in bytes."""

    shared_bytes: int
    warps: int = 64
    programs: int = 32
    registers: int = 65536


#: Of compute capability 8.0, 9.0 and 10.0: CUDA C++ programming guide, "Technical Specifications
#: per Compute Capability". What they have in common are the defaults above.
PROCESSORS = {
    80: Processor(164 * 1024),
    90: Processor(228 * 1024),
    100: Processor(228 * 1024),
}
PARTS = 4
REGISTER_UNIT = 256
SHARED_UNIT, SHARED_CHARGE = 128, 1024


@dataclass(frozen=True)
class Occupancy:
    """Programs that a multiprocessor holds, the warps of all of them, what there is no more of."""

    programs: int
    warps: int
    bound: str


def occupancy(registers: int, warps: int, shared_bytes: int, arch: int) -> Occupancy:
    """Of a program of ``warps`` warps with ``registers`` a thread and ``shared_bytes``.

    Where two things end at the same number of programs, the first of warps, programs, registers and
    shared memory is named.
    """
    processor = PROCESSORS[arch]
    of_warp = _in_units(32 * registers, REGISTER_UNIT)
    held_warps = PARTS * (processor.registers // PARTS // of_warp)
    of_program = _in_units(shared_bytes + SHARED_CHARGE, SHARED_UNIT)
    limits = {
        "warps": processor.warps // warps,
        "programs": processor.programs,
        "registers": held_warps // warps,
        "shared memory": processor.shared_bytes // of_program,
    }
    bound = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[bound], limits[bound] * warps, bound)


def _in_units(amount: int, unit: int) -> int:
    return -(-amount // unit) * unit
