"""What the report of kernels compiled ahead of time counts, on figures and code worked by hand."""

from __future__ import annotations

import pytest

from tests.ops.aot_instructions import instruction_counts, tensor_products
from tests.ops.aot_occupancy import Occupancy, occupancy


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        # 255 registers are 256: two warps in each part's 16,384, and eight in all.
        ((255, 2, 34 * 1024, 90), Occupancy(4, 8, "registers")),
        ((255, 8, 34 * 1024, 90), Occupancy(1, 8, "registers")),
        # 168 registers: three warps a part, of which three programs of four take all.
        ((168, 4, 0, 90), Occupancy(3, 12, "registers")),
        # 172 are 176: two a part where a multiprocessor's registers would do for eleven warps.
        ((172, 1, 0, 90), Occupancy(8, 8, "registers")),
        # 56,320 and the charge: four times on 228 KB, twice on 164.
        ((32, 4, 55 * 1024, 90), Occupancy(4, 16, "shared memory")),
        ((32, 4, 55 * 1024, 80), Occupancy(2, 8, "shared memory")),
        ((32, 8, 0, 100), Occupancy(8, 64, "warps")),
        ((32, 1, 0, 90), Occupancy(32, 32, "programs")),
    ],
)
def test_occupancy(asked: tuple[int, int, int, int], held: Occupancy) -> None:
    assert occupancy(*asked) == held


SASS = """
wkv7_kernel:
.text.wkv7_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0020*/                   FMUL R71, R71, R20 ;
.L_x_1:
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/              @!UP0 UIADD3 UR4, UR4, -UR8, URZ ;
        /*0060*/               @P5 BRA `(.L_x_2) ;
.L_x_0:
        /*0070*/                   EXIT ;
.L_x_3:
        /*10080*/                  BRA `(.L_x_3);
        /*10090*/                  NOP;
"""


def test_instructions_and_those_of_the_longest_loop() -> None:
    assert instruction_counts(SASS) == (8, 5)
    assert instruction_counts(SASS.replace("BRA `(.L_x_2)", "BRA `(.L_x_0)")) == (8, 2)
    assert instruction_counts("") == (0, 0)


def test_shapes_of_tensor_core_products() -> None:
    ptx = """
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 }, { %r3 }, { %r1 };
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 { %r1 }, { %r2 }, { %r3 }, { %r1 };
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 }, { %r3 }, { %r1 };
    wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 { %r1 }, %rd1, %rd2, p, 1, 1, 0, 0;
    wgmma.fence.sync.aligned;
    @p tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd1, %rd2, %r2, %p2;
    """
    assert tensor_products(ptx) == {
        "mma m16n8k16 bf16": 2,
        "mma m16n8k8 tf32": 1,
        "tcgen05 f16": 1,
        "wgmma m64n32k16 bf16": 1,
    }
