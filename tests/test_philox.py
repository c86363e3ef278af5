import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from solvers import philox as module
from solvers.philox import AT_ONCE, circle, minus_two_logs, normal, philox

EPS = np.finfo(np.float64).eps


# Random123's file of known answers, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, answer", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    words = philox(tuple(np.array([word], dtype=np.uint64) for word in counter), key)
    assert [int(word[0]) for word in words] == list(answer)


def test_philox_treats_a_whole_array_of_counters_like_each_one_alone():
    counters, keys, answers = zip(*KNOWN_ANSWERS[:2], strict=True)
    arrays = tuple(np.array(column, dtype=np.uint64) for column in zip(*counters, strict=True))
    assert [int(word[0]) for word in philox(arrays, keys[0])] == list(answers[0])
    assert [int(word[1]) for word in philox(arrays, keys[1])] == list(answers[1])


def test_a_row_of_normals_is_box_muller_on_the_words_of_its_own_counter():
    seed, sample, counter = (0x299F31D0 << 32) + 0xA4093822, (0x03707344 << 32) + 0x13198A2E, 7
    counters = (np.array([word], dtype=np.uint64) for word in (0, counter, 0x13198A2E, 0x03707344))
    words = philox(tuple(counters), (0xA4093822, 0x299F31D0))
    u = [(int(word[0]) + 0.5) / 2**32 for word in words]
    expected = []
    for radius, angle in (u[:2], u[2:]):
        expected += [
            np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle),
            np.sqrt(-2 * np.log(radius)) * np.sin(2 * np.pi * angle),
        ]
    np.testing.assert_allclose(normal(seed, np.array([sample]), counter, 4)[0], expected, rtol=1e-14, atol=1e-15)


def words(count: int) -> np.ndarray:
    """Random words, those around powers of two, where the logarithm's table begins anew, and those at sectors' ends."""
    random = np.random.default_rng(0).integers(0, 2**32, count)
    edges = np.concatenate([2 ** np.arange(32), np.arange(0, 2**32, 2**24), [2**32]])
    return np.unique(np.clip(np.concatenate([random, edges - 1, edges, edges + 1]), 0, 2**32 - 1))


def test_the_logarithms_are_exact_to_rounding():
    for word, found in zip(words(500).tolist(), minus_two_logs(words(500)).tolist(), strict=True):
        with mpmath.workdps(30):
            expected = -2 * mpmath.log((mpmath.mpf(word) + 0.5) / 2**32)
            assert abs(found - expected) < 2 * EPS * expected, word


def test_the_points_of_the_circle_are_exact_to_rounding():
    for word, cosine, sine in zip(words(500).tolist(), *(part.tolist() for part in circle(words(500))), strict=True):
        with mpmath.workdps(30):
            point = mpmath.expjpi((mpmath.mpf(word) + 0.5) / 2**31)
            assert max(abs(cosine - point.real), abs(sine - point.imag)) < 1.5 * EPS, word


def test_tensors_have_the_bits_of_arrays():
    given = words(10_000)
    tensor = torch.from_numpy(given)
    arrays = (*philox((given, 7, given, given), (3, 1 << 31)), minus_two_logs(given), *circle(given))
    tensors = (*philox((tensor, 7, tensor, tensor), (3, 1 << 31)), minus_two_logs(tensor), *circle(tensor))
    assert all(torch.equal(one, torch.from_numpy(other)) for one, other in zip(tensors, arrays, strict=True))
    assert torch.equal(tensor, torch.from_numpy(words(10_000)))


@pytest.mark.parametrize(("count", "size"), [(4, 100), (4, 1), (0, 5), (3, 0)])
def test_normals_of_a_device_are_computed_there(count, size):
    # Tensors of meta have no values, and operations with those of another device fail, as they do on a GPU.
    found = normal(0, torch.arange(count, device="meta"), 0, size)
    assert (found.shape, found.dtype, found.device.type) == ((count, size), torch.float64, "meta")


def test_normals_of_tensors_are_those_of_arrays(monkeypatch):
    ids = np.array([0, 5, 2**63 - 1])
    together = normal(2**64 - 1, torch.from_numpy(ids), 2**32 - 1, 403)
    # On the CPU, and only there, torch's square roots are not always correctly rounded.
    np.testing.assert_allclose(together.numpy(), normal(2**64 - 1, ids, 2**32 - 1, 403), rtol=2 * EPS, atol=0)
    monkeypatch.setattr(module, "AT_ONCE_ON_DEVICE", 64)
    assert torch.equal(normal(2**64 - 1, torch.from_numpy(ids), 2**32 - 1, 403), together)


@pytest.mark.parametrize("component", range(4))
def test_each_of_the_four_words_of_a_block_is_normal_and_neighbours_are_independent(component):
    rows = normal(5, np.arange(20_000), 3, 4)
    assert stats.kstest(rows[:, component], "norm").pvalue > 1e-3
    other = rows[:, (component + 1) % 4]
    assert stats.pearsonr(rows[:, component], other).pvalue > 1e-3
    assert stats.pearsonr(rows[:, component] ** 2, other**2).pvalue > 1e-3


def test_a_longer_row_begins_with_the_shorter_one():
    np.testing.assert_array_equal(normal(2, np.arange(3), 0, 9)[:, :5], normal(2, np.arange(3), 0, 5))


def test_rows_that_are_drawn_in_parts_are_those_drawn_alone_and_repeat_nothing():
    size = 6 * AT_ONCE  # a part and a half, in blocks of four
    together = normal(5, np.arange(2), 0, size)
    for sample, row in enumerate(together):
        assert np.array_equal(row, normal(5, np.array([sample]), 0, size)[0])
        assert len(np.unique(row)) == size
