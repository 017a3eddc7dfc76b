"""Whatever layout a linear chooses, it computes the same function."""

import pytest
import torch
import torch.nn.functional as functional

from libs.engine.linear import (
    Layout,
    LayoutChooser,
    Linear,
    is_packing_sound,
    is_row_copy_faster,
)
from libs.kernel.units import MIB


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_a_linear_is_x_times_w_transposed_plus_b(
    rows: int, has_bias: bool, layout: Layout, dtype: torch.dtype, tolerance: float
) -> None:
    if layout is not Layout.PLAIN and not is_packing_sound(dtype):
        pytest.skip("this torch or processor has no packed linears")
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 48, generator=generator).to(dtype)
    weight = torch.randn(80, 48, generator=generator).to(dtype)
    bias = torch.randn(80, generator=generator).to(dtype) if has_bias else None
    expected = functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    got = Linear(weight, bias, layout=layout)(x)
    assert got.dtype == dtype
    assert torch.allclose(got.double(), expected, atol=tolerance, rtol=tolerance)


def test_second_copies_stay_within_their_bound() -> None:
    chooser = LayoutChooser(row_copy_bytes_max=5 * MIB // 2)
    weight = torch.zeros(512, 512)
    layouts = [chooser.choose(weight.numel(), weight.dtype, weight.device) for _ in range(4)]
    assert layouts[2:] == [layouts[3]] * 2
    assert Layout.PACKED_AND_TRANSPOSED not in layouts[2:]
    if is_packing_sound(torch.float32) and is_row_copy_faster(torch.float32):
        assert layouts[:2] == [Layout.PACKED_AND_TRANSPOSED] * 2


def test_small_weights_are_never_held_twice() -> None:
    chooser = LayoutChooser(row_copy_bytes_max=1024 * MIB)
    assert (
        chooser.choose(10_000, torch.float32, torch.device("cpu"))
        is not Layout.PACKED_AND_TRANSPOSED
    )


def test_the_probes_answer_on_this_machine() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        if is_packing_sound(dtype):
            assert is_row_copy_faster(dtype) in (True, False)
