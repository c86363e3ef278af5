import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from solvers import NoiseStream

SIZE = (1, 28, 28)


def draw(stream, batch, shape=SIZE, dtype=torch.float64):
    return stream.draw(torch.empty(batch, *shape, dtype=dtype))[0]


def test_noise_is_standard_normal():
    values = draw(NoiseStream(11), 256).flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / values.size)
    assert stats.kurtosis(values) == pytest.approx(0, abs=4 * np.sqrt(24 / values.size))


@pytest.mark.parametrize(
    "first, second",
    [
        (NoiseStream(0), NoiseStream(1)),
        (NoiseStream(0), NoiseStream(1 << 32)),
        (NoiseStream(0), NoiseStream(0, counter=1)),
        (NoiseStream(0, range(0, 64)), NoiseStream(0, range(64, 128))),
        (NoiseStream(0, range(0, 128, 2)), NoiseStream(0, range(1, 129, 2))),
        (NoiseStream(0, range(0, 64)), NoiseStream(0, range(1 << 32, (1 << 32) + 64))),
    ],
    ids=["seeds", "high words of seeds", "draws", "samples", "neighbouring samples", "high words of samples"],
)
def test_streams_that_differ_are_independent(first, second):
    one, other = (draw(stream, 64).flatten().numpy() for stream in (first, second))
    assert not np.isin(one, other).any()
    assert stats.pearsonr(one, other).pvalue > 1e-3
    assert stats.pearsonr(one**2, other**2).pvalue > 1e-3


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8),
    counter=st.integers(0, 10_000),
    size=st.integers(1, 9),
    data=st.data(),
)
def test_the_noise_of_a_sample_depends_on_seed_id_and_counter_alone(seed, ids, counter, size, data):
    together = draw(NoiseStream(seed, ids, counter), len(ids), (size,))
    order = data.draw(st.permutations(range(len(ids))))
    permuted = draw(NoiseStream(seed, [ids[i] for i in order], counter), len(ids), (size,))
    assert torch.equal(permuted, together[list(order)])
    cut = data.draw(st.integers(0, len(ids)))
    shards = [draw(NoiseStream(seed, part, counter), len(part), (size,)) for part in (ids[:cut], ids[cut:])]
    assert torch.equal(torch.cat(shards), together)


def test_samples_are_numbered_from_zero_unless_given():
    assert torch.equal(draw(NoiseStream(4), 3), draw(NoiseStream(4, (0, 1, 2)), 3))


def test_every_draw_advances_the_counter_and_the_stream_itself_stays():
    stream = NoiseStream(9)
    like = torch.empty(2, 3, dtype=torch.float64)
    first, following = stream.draw(like)
    second, _ = following.draw(like)
    assert torch.equal(stream.draw(like)[0], first)
    assert torch.equal(draw(NoiseStream(9, counter=1), 2, (3,)), second)
    assert not torch.equal(first, second)
    assert following == NoiseStream(9, counter=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_noise_of_lower_precision_is_the_rounded_float64_noise(dtype):
    noise = draw(NoiseStream(3), 4, dtype=dtype)
    assert noise.dtype == dtype
    assert torch.equal(noise, draw(NoiseStream(3), 4).to(dtype))


def test_a_row_without_components_and_a_batch_without_rows_are_empty():
    assert draw(NoiseStream(0), 0, (3,)).shape == (0, 3)
    assert draw(NoiseStream(0), 3, (0,)).shape == (3, 0)
    assert draw(NoiseStream(0), 3, ()).shape == (3,)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "0", None])
def test_a_seed_that_is_no_whole_number_in_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed=.* from 0 to 2\*\*64 - 1"):
        NoiseStream(seed)


def test_the_largest_seed_and_id_draw_noise():
    assert draw(NoiseStream(2**64 - 1, (2**63 - 1,)), 1).isfinite().all()


@pytest.mark.parametrize("samples", [(-1,), (2**63,), (0, -5), (1.5,), ("a",)])
def test_sample_ids_that_are_no_whole_numbers_in_range_are_refused(samples):
    with pytest.raises((TypeError, ValueError), match="samples"):
        NoiseStream(0, samples)


@pytest.mark.parametrize("counter", [-1, 2**32, 0.5])
def test_a_counter_that_is_no_32_bit_number_is_refused(counter):
    with pytest.raises(ValueError, match="counter"):
        NoiseStream(0, counter=counter)


@pytest.mark.parametrize("batch", [1, 3])
def test_ids_must_be_as_many_as_rows(batch):
    with pytest.raises(ValueError, match=f"samples has 2 ids and the batch {batch} rows"):
        draw(NoiseStream(0, (4, 5)), batch)


def test_ids_may_be_an_array_or_a_tensor():
    expected = draw(NoiseStream(1, (7, 3)), 2)
    assert torch.equal(draw(NoiseStream(1, np.array([7, 3])), 2), expected)
    assert torch.equal(draw(NoiseStream(1, torch.tensor([7, 3])), 2), expected)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint32, np.uint64])
def test_a_seed_of_numpy_is_that_of_python(kind):
    like = torch.empty(3, 4)
    assert torch.equal(NoiseStream(kind(7)).draw(like)[0], NoiseStream(7).draw(like)[0])


def test_ids_in_rows_and_columns_are_refused():
    with pytest.raises(ValueError, match="samples must be whole numbers.*one for each sample"):
        NoiseStream(0, np.arange(8).reshape(4, 2))
