"""Masked arithmetic against plain arithmetic on what the mask keeps."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes

from rlhf_lab.maths.tensors import (
    check_data,
    check_mask,
    check_shapes,
    length_mask,
    masked_mean,
    masked_sum,
    masked_var,
    masked_whiten,
)

torch.set_num_threads(1)
few = settings(max_examples=40, deadline=None)


@st.composite
def masked_rows(draw, min_true=1):
    """x with NaN and infinity under the mask, mask of any pattern, and the kept entries as a list."""
    shape = draw(array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.1]))
    mask.view(-1)[:min_true] = True
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    dirt = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    x = torch.where(mask, x, dirt[torch.randint(3, shape, generator=generator)])
    kept = [float(x[i, j]) for i in range(shape[0]) for j in range(shape[1]) if mask[i, j]]
    return x, mask, kept


@few
@given(masked_rows(min_true=2))
def test_sum_mean_and_variance_are_those_of_the_kept_entries(case):
    x, mask, kept = case
    mean = sum(kept) / len(kept)
    assert float(masked_sum(x, mask)) == pytest.approx(sum(kept))
    assert float(masked_mean(x, mask)) == pytest.approx(mean)
    variance = sum((value - mean) ** 2 for value in kept) / (len(kept) - 1)
    assert float(masked_var(x, mask)) == pytest.approx(variance)


@few
@given(masked_rows(), st.sampled_from([0, 1]))
def test_dim_reduces_one_axis(case, dim):
    x, mask, _ = case
    mask.fill_(True)
    x = torch.nan_to_num(x)
    torch.testing.assert_close(masked_mean(x, mask, dim=dim), x.mean(dim))
    torch.testing.assert_close(masked_sum(x, mask, dim=dim), x.sum(dim))


def test_means_of_rows_have_their_own_denominator():
    x, mask = torch.tensor([[1.0, 3.0], [8.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    assert masked_mean(x, mask, dim=1).tolist() == [2.0, 8.0]
    assert masked_mean(x, mask, dim=0).tolist() == [4.5, 3.0]
    assert masked_mean(x, mask).item() == 4.0  # not the mean of the means, 5
    assert masked_mean(x, mask, count=1).item() == 12.0


@few
@given(masked_rows(), st.integers(1, 4))
def test_micro_batches_add_up_to_the_mean_of_the_minibatch(case, size):
    x, mask, kept = case
    parts = zip(x.split(size), mask.split(size), strict=True)
    total = sum(masked_mean(part, part_mask, count=len(kept)) for part, part_mask in parts)
    torch.testing.assert_close(total, masked_mean(x, mask))


def test_gradients_of_micro_batches_add_up_and_padding_gets_none():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = length_mask(torch.tensor([4, 1, 2, 0, 3]), 4)
    (whole,) = torch.autograd.grad(masked_mean(x.square(), mask), x)
    pieces = torch.zeros_like(whole)
    for rows in (slice(0, 2), slice(2, 5)):
        loss = masked_mean(x[rows].square(), mask[rows], count=mask.sum())
        pieces += torch.autograd.grad(loss, x)[0]
    torch.testing.assert_close(pieces, whole)
    assert whole[~mask].eq(0).all()


@few
@given(masked_rows(min_true=3), st.booleans())
def test_whitening_against_the_definition(case, shift_mean):
    x, mask, kept = case
    mean = sum(kept) / len(kept)
    std = math.sqrt(sum((value - mean) ** 2 for value in kept) / (len(kept) - 1) + 1e-8)
    white = masked_whiten(x, mask, shift_mean)
    expected = [(value - mean) / std + (0.0 if shift_mean else mean) for value in kept]
    assert white[mask].tolist() == pytest.approx(expected)
    assert white[~mask].eq(0).all()


def test_what_is_under_the_mask_has_no_gradient_and_gives_none():
    x = torch.tensor([1.0, 2.0, 5.0, math.nan], dtype=torch.float64, requires_grad=True)
    real = torch.tensor([True, True, True, False])
    (slope,) = torch.autograd.grad(masked_var(x, real), x)
    assert slope.tolist() == pytest.approx([-5 / 3, -2 / 3, 7 / 3, 0])  # (x - mean), as 2 / (n - 1) is 1
    kept = x.detach()[:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda y: masked_whiten(y, real[:3]), kept)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_one_entry_alone_has_nothing_to_scale(shift_mean):
    x, mask = torch.tensor([[7.0, math.nan]], requires_grad=True), torch.tensor([[True, False]])
    white = masked_whiten(x, mask, shift_mean)
    assert white.tolist() == [[0.0 if shift_mean else 7.0, 0.0]]
    (slope,) = torch.autograd.grad(white.sum(), x)
    assert slope.tolist() == [[0.0 if shift_mean else 1.0, 0.0]]


def test_whitened_entries_have_mean_0_and_variance_1_over_the_mask():
    x, mask = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.ones(6, 5).bool()
    mask[:, 3:] = False
    white = masked_whiten(x, mask)
    assert abs(float(masked_mean(white, mask))) < 1e-6
    assert float(masked_var(white, mask)) == pytest.approx(1)
    kept_mean = masked_whiten(x + 5, mask, shift_mean=False)
    assert float(masked_mean(kept_mean, mask)) == pytest.approx(float(masked_mean(x + 5, mask)))


def test_whitening_a_constant_gives_zeros_and_ignores_padding():
    mask = length_mask(torch.tensor([2, 1]), 3)
    for constant in (7.0, 0.1, 2 / 3, 1000.1):  # the mean of most is not the constant, in the last digit
        wide = torch.full((1, 257), constant)
        assert masked_whiten(wide, torch.ones(1, 257).bool()).eq(0).all()
        assert masked_var(wide, torch.ones(1, 257).bool()) == 0
    x = torch.tensor([[1.0, 2.0, math.nan], [4.0, 0.0, 0.0]])
    wider = torch.nn.functional.pad(x, (0, 4), value=99.0)
    wider_mask = length_mask(torch.tensor([2, 1]), 7)
    torch.testing.assert_close(masked_whiten(wider, wider_mask)[:, :3], masked_whiten(x, mask))


@few
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_length_mask_is_true_before_the_length(lengths):
    mask = length_mask(torch.tensor(lengths), 6)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[t < length for t in range(6)] for length in lengths]


def test_a_mask_lies_where_the_lengths_do(devices_named):
    lengths = torch.tensor([1, 3])
    with devices_named:
        assert length_mask(lengths, 3).sum() == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: length_mask(torch.tensor([1, 4]), 3), r"lengths must be in \[0, 3\], got \[1, 4\]"),
        (lambda: length_mask(torch.tensor([-1]), 3), "lengths must be in"),
        (lambda: length_mask(torch.tensor([1.0]), 3), "lengths must be integers"),
        (lambda: length_mask(torch.tensor([True]), 3), "lengths must be integers"),
        (lambda: length_mask(torch.tensor([[1]]), 3), "lengths must be integers"),
        (
            lambda: masked_sum(torch.ones(2, 2), torch.ones(2).bool()),
            r"mask has shape \[2\], expected \[2, 2\]",
        ),
        (lambda: masked_mean(torch.ones(2), torch.ones(2)), "mask must be torch.bool, got torch.float32"),
        (lambda: masked_mean(torch.ones(2), torch.zeros(2).bool()), "mask has no True entry"),
        (lambda: masked_mean(torch.ones(1, 2), torch.tensor([[True, False]]), dim=0), "no True entry"),
        (lambda: masked_mean(torch.ones(2), torch.ones(2).bool(), count=0), "count must be positive, got 0"),
        (lambda: masked_var(torch.ones(2), torch.tensor([True, False])), "at least 2 True .* got 1"),
        (lambda: masked_whiten(torch.ones(2), torch.zeros(2).bool()), "at least 1 True .* got 0"),
        (lambda: check_mask(torch.ones(2), torch.ones(3).bool()), "mask has shape"),
        (lambda: check_shapes(a=torch.ones(2), b=torch.ones(2), c=torch.ones(3)), "c has shape .* like a"),
        (
            lambda: check_data(a=torch.ones(1), b=torch.ones(1, requires_grad=True)),
            r"b must be .*b\.detach\(\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_empty_sums_are_zero_and_an_empty_micro_batch_counts_nothing():
    x, empty = torch.ones(2, 2), torch.zeros(2, 2).bool()
    assert masked_sum(x, empty).item() == 0
    assert masked_mean(x, empty, count=3).item() == 0
