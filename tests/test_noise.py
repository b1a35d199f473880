import pytest
import torch
from scipy import stats

from simgen.errors import InputError
from simgen.noise import Noise, Stream, gumbel, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    words = torch.tensor([[int(word, 16) for word in counter.split()]])
    k0, k1 = (int(word, 16) for word in key.split())
    assert [f"{word:08x}" for word in philox(words, (k0, k1))[0].tolist()] == expected.split()


COUNTS = torch.tensor([3, 1, 5])
IDX = torch.repeat_interleave(torch.arange(3), COUNTS)


def test_a_sample_draws_the_same_in_any_batch() -> None:
    together = Noise(7, torch.tensor([10, 11, 12]))
    alone = Noise(7, torch.tensor([12]))
    own = torch.zeros(5, dtype=torch.int64)
    for draw in ("normal", "uniform"):
        batch = getattr(together, draw)(Stream.CHURN, 4, IDX)
        assert torch.equal(batch[IDX == 2], getattr(alone, draw)(Stream.CHURN, 4, own))
    assert torch.equal(
        together.uniform_per_molecule(Stream.SURVIVORS, 1)[2:],
        alone.uniform_per_molecule(Stream.SURVIVORS, 1),
    )


def test_the_first_particle_draws_what_the_molecule_draws() -> None:
    noise = Noise(7, torch.tensor([3, 4]))
    particles = noise.particles(3)
    draws = particles.uniform_per_molecule(Stream.SURVIVORS, 1)
    assert torch.equal(draws[::3], noise.uniform_per_molecule(Stream.SURVIVORS, 1))
    assert len(draws.unique()) == 6


def test_everything_in_the_key_matters() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    draws = [
        Noise(seed, torch.tensor([sample]), torch.tensor([particle])).normal(stream, step, one)
        for seed in (0, 1, 2**32, 2**64 - 1)
        for sample in (0, 1, 2**32 - 1)
        for particle in (0, 1)
        for stream in Stream
        for step in (0, 1)
    ]
    assert len(torch.cat(draws).unique(dim=0)) == len(draws)


@pytest.mark.parametrize(("draw", "distribution"), [("normal", "norm"), ("uniform", "uniform")])
def test_distributions(draw: str, distribution: str) -> None:
    noise = Noise(1, torch.arange(200))
    values = getattr(noise, draw)(Stream.CHURN, 0, torch.arange(200).repeat_interleave(100))
    columns = values.reshape(len(values), -1)
    for column in columns.T:
        assert stats.kstest(column.numpy(), distribution).pvalue > 1e-3
    # Neighbouring atoms, and the components of an atom, are uncorrelated.
    correlation = torch.corrcoef(torch.cat([columns[:-1], columns[1:]], dim=1).T)
    assert (correlation - torch.eye(len(correlation))).abs().max() < 0.03


def test_largest_gumbel_draws_in_proportion_to_the_weights() -> None:
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    uniform = Noise(2, torch.arange(1)).uniform(
        Stream.CHURN, 0, torch.zeros(60_000, dtype=torch.int64)
    )
    chosen = (weights.log() + gumbel(uniform.view(-1, 3))).argmax(1)
    counts = torch.bincount(chosen, minlength=3)
    assert stats.chisquare(counts.numpy(), (20_000 * weights).numpy()).pvalue > 1e-3


def test_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    Noise(0, torch.arange(2)).normal(Stream.START, 0, torch.arange(2))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("seed", "sample_idx", "words"),
    [
        (-1, torch.arange(2), "seed"),
        (2**64, torch.arange(2), "seed"),
        (0, torch.tensor([-1]), "sample_idx"),
        (0, torch.tensor([2**32]), "sample_idx"),
        (0, torch.zeros(1), "sample_idx"),
    ],
)
def test_wrong_keys_are_refused(seed: int, sample_idx: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Noise(seed, sample_idx)
