"""What molecules may be made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simgen.composition import Composition, Palette
from simgen.errors import ConfigError, InputError


def test_a_plain_palette_starts_with_carbon_and_has_no_bounds() -> None:
    palette = Palette()
    assert palette.weights == (1.0, 1.0, 1.0)
    assert not palette.is_bounded
    assert palette.start(4) == [6, 6, 6, 6]
    assert Palette((7, 8)).start(3) == [7, 7, 7]


@given(
    st.permutations([6, 7, 8, 16]),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=4),
    st.integers(0, 20),
)
def test_what_a_palette_starts_with_is_within_its_bounds(
    elements: list[int], bounds: list[tuple[int, int]], n_atoms: int
) -> None:
    low = tuple(least for least, _ in bounds)
    high = tuple(least + more for least, more in bounds)
    palette = Palette(tuple(elements), at_least=low, at_most=high)
    if sum(low) <= n_atoms <= sum(high):
        start = palette.start(n_atoms)
        assert len(start) == n_atoms
        for z, least, most in zip(elements, low, high, strict=True):
            assert least <= start.count(z) <= most
        # As much carbon as there may be beside what there must be.
        k = elements.index(6)
        assert start.count(6) == min(high[k], n_atoms - sum(low) + low[k])
    else:
        with pytest.raises(ConfigError, match=f"no {n_atoms} heavy atoms"):
            palette.start(n_atoms)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Palette(()), "expected different elements"),
        (lambda: Palette((6, 6)), "expected different elements"),
        (lambda: Palette((6, 7), weights=(1.0,)), "2 positive weights"),
        (lambda: Palette((6, 7), weights=(1.0, 0.0)), "2 positive weights"),
        (lambda: Palette((6, 7), at_most=(3,)), "2 numbers of atoms"),
        (lambda: Composition(()), "different ones"),
        (lambda: Composition(("C", "C")), "different ones"),
        (lambda: Composition(("C", "H")), "hydrogens are added at the end"),
        (lambda: Composition(("C", "Xx")), "expected a chemical symbol"),
        (lambda: Composition(weights={"S": 2.0}), "weights of C, N, O only, got S"),
        (lambda: Composition(at_least={"N": 3}, at_most={"N": 2}), "at_least <= at_most for N"),
        (lambda: Composition(at_least={"N": -1}), "at_least <= at_most for N"),
        (lambda: Composition(at_most={"O": -1}), "expected at_most >= 0"),
        (lambda: Composition(n_hydrogens=-1), "expected n_hydrogens >= 0"),
        (lambda: Composition.from_formula(""), "sum formula such as"),
        (lambda: Composition.from_formula("c6"), "sum formula such as"),
        (lambda: Composition.from_formula("C6(OH)2"), "sum formula such as"),
        (lambda: Composition.from_formula("H2"), "with heavy atoms"),
        (lambda: Composition.from_formula("C2Xy"), "expected a chemical symbol"),
        (lambda: Composition.from_dict({"element": ["C"]}), "cannot make a composition"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(make, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_formulas_are_exact() -> None:
    caffeine = Composition.from_formula("C8H10N4O2", charge=0)
    assert caffeine.n_heavy_atoms == 14
    assert caffeine.n_hydrogens == 10
    assert caffeine.charge == 0
    palette = caffeine.palette()
    assert palette.is_bounded
    assert sorted(palette.start(14)) == [6] * 8 + [7] * 4 + [8] * 2
    for n_atoms in (13, 15):
        with pytest.raises(ConfigError, match="from 14 to 14 atoms"):
            palette.start(n_atoms)
    assert Composition.from_formula("CCl4C").at_most == {"C": 2, "Cl": 4}
    assert Composition.from_formula("C2N").n_hydrogens is None
    assert Composition(("C", "N"), at_least={"C": 2}).n_heavy_atoms is None


def test_a_scaffold_counts() -> None:
    wanted = Composition(("C", "N"), at_least={"N": 2, "Cl": 1}, at_most={"C": 7, "N": 3})
    palette = wanted.palette({"C": 6, "N": 1, "Cl": 1})
    assert palette.at_least == (0, 1)
    assert palette.at_most == (1, 2)
    with pytest.raises(ConfigError, match="the scaffold has 8 atoms of C, and at most 7"):
        wanted.palette({"C": 8, "Cl": 1})
    with pytest.raises(ConfigError, match="at least 1 atoms of Cl are wanted"):
        wanted.palette({"C": 6})


@given(
    st.builds(
        Composition,
        st.permutations(["C", "N", "O", "S"]).map(tuple),
        weights=st.dictionaries(st.sampled_from(["C", "N"]), st.floats(0.1, 10.0)),
        at_least=st.dictionaries(st.sampled_from(["N", "Cl"]), st.integers(0, 3)),
        at_most=st.dictionaries(st.sampled_from(["N", "S"]), st.integers(3, 9)),
        n_hydrogens=st.none() | st.integers(0, 30),
        charge=st.none() | st.integers(-2, 2),
        formal_charges=st.booleans(),
    )
)
def test_descriptions_say_it_all(composition: Composition) -> None:
    assert Composition.from_dict(composition.to_dict()) == composition
