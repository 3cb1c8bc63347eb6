"""`GaussianNoise`: distribution, precision, one addition a step, secrecy and reproducibility."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.randomness import NormalStream, secret_generator, seeded_generator
from ldm.privacy.sums import FlatSums

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def device_or_skip(name):
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("std", [1e-6, 0.7, 300.0])
def test_mean_variance_and_tails(std, device):
    count = 400_000
    noise = GaussianNoise(std, insecure_seed=0).sample((count,), device_or_skip(device)).double().cpu() / std
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / count)
    for limit, chance in ((1, 0.317311), (2, 0.0455003), (3, 0.0026998)):
        share = (noise.abs() > limit).double().mean()
        assert abs(share - chance) < 5 * math.sqrt(chance / count)


def test_the_numbers_are_normal_throughout():
    count = 400_000
    noise = GaussianNoise(2.0, insecure_seed=2).sample((count,)).double() / 2
    levels = torch.special.ndtr(noise.sort().values)
    distance = (levels - (torch.arange(count, dtype=torch.float64) + 0.5) / count).abs().max()
    assert distance * math.sqrt(count) < 1.95, "Kolmogorov's test at a level of 0.001"
    assert abs((noise.abs() > 4).sum() - count * 6.334e-5) < 5 * math.sqrt(count * 6.334e-5)


def test_neighbouring_numbers_are_independent():
    numbers = torch.zeros(1_300_000)
    NormalStream(seeded_generator(3, 2, 0, np.random.SFC64), 1.0).add_to(numbers)
    numbers = numbers.double()
    limit = 5 / math.sqrt(numbers.numel())
    for lag in (1, 2, 7, 1 << 15):
        one, other = numbers[lag:], numbers[:-lag]
        for power, other_power in itertools.product((1, 2, 3), repeat=2):
            both = torch.stack([one**power, other**other_power])
            assert abs(torch.corrcoef(both)[0, 1]) < limit, (lag, power, other_power)


def test_the_stream_is_drawn_in_float64_and_rounded_once():
    wanted = 1e-4 * seeded_generator(4, 2, 0).standard_normal(70_000)
    numbers = torch.zeros(70_000)
    NormalStream(seeded_generator(4, 2, 0), 1e-4).add_to(numbers)
    assert torch.equal(numbers, torch.from_numpy(wanted).float())
    exact = torch.full((70_000,), 3.0, dtype=torch.float64)
    NormalStream(seeded_generator(4, 2, 0), 1e-4).add_to(exact)
    np.testing.assert_allclose(exact.numpy(), 3.0 + wanted, rtol=0, atol=1e-15)


def test_numbers_are_as_fine_as_float32_around_zero_and_far_out():
    """Where few random bits make a number, many of them fall together."""
    found = GaussianNoise(1.0, insecure_seed=8).sample((400_000,))
    for low, high in ((0.0, 0.01), (3.0, 6.0)):
        inside = found[(found.abs() >= low) & (found.abs() < high)]
        bits = inside.view(torch.int32) & 0xFF  # the last 8 of 23 bits of the fraction: each as often as the others
        counts = torch.bincount(bits, minlength=256).double()
        expected = len(inside) / 256
        assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * math.sqrt(2 * 255), (low, high)


def test_no_number_is_given_out_twice_wherever_tensors_end():
    whole, parts = (NormalStream(seeded_generator(5, 2, 0), 1.0) for _ in range(2))
    everything = torch.zeros(80_000)
    whole.add_to(everything)
    pieces = [torch.zeros(size) for size in (1, 0, 30_000, 2_768, 40_000, 7_231)]
    for piece in pieces:
        parts.add_to(piece)
    assert torch.equal(torch.cat(pieces), everything)
    assert len(everything.unique()) > 0.99 * len(everything)


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_float32_and_has_the_shape(device):
    noise = GaussianNoise(1.0)
    for shape in ((3, 4), (0,), (), (2, 0, 5)):
        tensor = noise.sample(shape, device_or_skip(device))
        assert tensor.shape == shape and tensor.dtype == torch.float32 and tensor.device.type == device


def test_it_is_added_in_place_to_every_coordinate_once():
    sums = {"a": torch.full((1000,), 5.0), "b": torch.zeros(10, 10)}
    a, b = sums["a"], sums["b"]
    noise = GaussianNoise(0.5)
    noise.add_(sums)
    assert sums["a"] is a and sums["b"] is b and noise.steps == 1
    assert (a != 5).float().mean() > 0.99 and (b != 0).float().mean() > 0.99
    assert abs((a - 5).std() - 0.5) < 0.1
    assert abs(np.corrcoef(a[:100] - 5, b.flatten())[0, 1]) < 0.6, "tensors get noise of their own"


def test_sums_of_any_layout_get_the_same_noise():
    plain, turned, double = torch.zeros(50, 30), torch.zeros(30, 50).t(), torch.zeros(50, 30, dtype=torch.float64)
    for tensor in (plain, turned, double):
        GaussianNoise(1.0, insecure_seed=6).add_({"x": tensor})
    assert torch.equal(plain, turned) and torch.equal(plain, double.float())


def test_flat_sums_are_noised_at_once_in_every_coordinate():
    shapes = {"b": torch.empty(7), "a": torch.empty(3, 11), "c": torch.empty(())}
    sums = FlatSums(shapes)
    noise = GaussianNoise(2.0, insecure_seed=6)
    noise.add_(sums)
    expected = GaussianNoise(2.0, insecure_seed=6).sample(sums.flat.shape)
    assert noise.steps == 1 and torch.equal(sums.flat, expected)
    assert torch.equal(sums["a"].flatten(), expected[:33]), "in the order of the names"
    assert all(bool((value != 0).all()) for value in sums.values())


def test_threads_have_generators_of_their_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    noise, count = GaussianNoise(0.5), 3 << 17
    parts = noise.sample((count,)).view(3, -1)
    assert abs(float(parts.std()) - 0.5) < 5 * 0.5 / math.sqrt(2 * count)
    assert bool((parts != 0).float().mean() > 0.999)
    others = torch.corrcoef(parts) - torch.eye(3)
    assert float(others.abs().max()) < 5 / math.sqrt(count / 3)
    whole = GaussianNoise(0.5, insecure_seed=1).sample((count,))
    monkeypatch.undo()
    assert torch.equal(whole, GaussianNoise(0.5, insecure_seed=1).sample((count,))), "insecure noise is one stream"


def test_a_logical_step_is_counted_once_however_many_tensors_it_has():
    noise = GaussianNoise(1.0)
    for _ in range(3):
        noise.add_({str(i): torch.zeros(2) for i in range(5)})
    assert noise.steps == 3


def test_the_variance_of_the_sum_is_that_of_one_addition():
    noise = GaussianNoise(2.0, insecure_seed=1)
    draws = torch.zeros(2000, 20)
    for row in draws:
        noise.add_({"row": row})
    assert abs(draws.var() - 4) < 5 * 4 * math.sqrt(2 / draws.numel())


def test_secret_runs_differ_and_insecure_ones_agree():
    def once(**arguments):
        sums = {"b": torch.zeros(50), "a": torch.zeros(50)}
        noise = GaussianNoise(1.0, **arguments)
        noise.add_(sums)
        noise.add_(sums)
        return sums

    assert not torch.equal(once()["a"], once()["a"])
    assert torch.equal(once(insecure_seed=3)["a"], once(insecure_seed=3)["a"])
    assert not torch.equal(once(insecure_seed=3)["a"], once(insecure_seed=4)["a"])


def test_secret_noise_is_fresh_in_every_step():
    noise, steps = GaussianNoise(1.0), [{"x": torch.zeros(2000)} for _ in range(3)]
    for sums in steps:
        noise.add_(sums)
    correlation = torch.corrcoef(torch.stack([sums["x"] for sums in steps])) - torch.eye(3)
    assert float(correlation.abs().max()) < 5 / 2000**0.5


def test_the_global_seeds_do_not_matter():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(GaussianNoise(1.0).sample((20,)))
    assert not torch.equal(draws[0], draws[1])


def test_an_insecure_run_can_go_on_where_it_stopped():
    whole, rest = GaussianNoise(1.0, insecure_seed=9), GaussianNoise(1.0, insecure_seed=9, start=1)
    first, second, resumed = ({"x": torch.zeros(8)} for _ in range(3))
    whole.add_(first)
    whole.add_(second)
    rest.add_(resumed)
    assert torch.equal(second["x"], resumed["x"])
    assert not torch.equal(first["x"], second["x"])


def test_the_order_of_the_names_does_not_matter_to_an_insecure_run():
    forward, backward = {"a": torch.zeros(4), "b": torch.zeros(4)}, {"b": torch.zeros(4), "a": torch.zeros(4)}
    GaussianNoise(1.0, insecure_seed=0).add_(forward)
    GaussianNoise(1.0, insecure_seed=0).add_(backward)
    assert torch.equal(forward["a"], backward["a"])


def test_noise_on_low_precision_sums_is_refused_before_anything_is_noised():
    sums = {"a": torch.zeros(4), "b": torch.zeros(4, dtype=torch.bfloat16)}
    noise = GaussianNoise(1.0)
    with pytest.raises(UserError, match="float32"):
        noise.add_(sums)
    assert noise.steps == 0 and not sums["a"].any()


@pytest.mark.parametrize("std", [0, -1.0, math.nan, math.inf])
def test_the_scale_must_be_positive(std):
    with pytest.raises(UserError, match="standard deviation"):
        GaussianNoise(std)


def test_it_says_whether_it_is_secret():
    assert GaussianNoise(1.0).secure and not GaussianNoise(1.0, insecure_seed=0).secure


def test_secret_generators_have_more_entropy_than_torchs_cpu_generator():
    """Why numpy draws the noise on CPUs: torch's CPU generator ignores the upper half of its seed."""
    state = secret_generator().bit_generator.state["state"]
    assert state["state"] > 2**64, "128 bits of state, below 2^64 with a chance of 2^-64"
    states = {secret_generator().bit_generator.state["state"]["state"] for _ in range(50)}
    assert len(states) == 50
