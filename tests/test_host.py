"""Hosts: cavities, walls, contacts, and molecules that are made inside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chemistry import conformer
from rdkit import Chem

from simgen.errors import InputError, LoadError
from simgen.finishing.status import Status
from simgen.generation import Generator
from simgen.generation import maker as maker_module
from simgen.host import CAVITY_RADIUS, CLASH, CONTACT, WALL, Host
from simgen.models import ForceField, NetworkConfig
from simgen.molecules import MoleculeBatch
from simgen.priors import Gaussian
from simgen.reference import ReferenceSet, load_reference
from simgen.sampling import Samples
from simgen.scaffold import Scaffold

CARBON, OXYGEN, HYDROGEN = 1.7, 1.55, 1.2
"""Van der Waals radii of RDKit, angstrom."""


def shell(
    radius: float, n_atoms: int = 120, centre: tuple[float, float, float] = (0, 0, 0)
) -> Host:
    """A closed cage of carbon."""
    k = np.arange(n_atoms) + 0.5
    z, phi = 1 - 2 * k / n_atoms, np.pi * (1 + 5**0.5) * k
    rho = np.sqrt(1 - z**2)
    points = radius * np.stack([rho * np.cos(phi), rho * np.sin(phi), z], 1) + centre
    return Host(np.full(n_atoms, 6), points)


@pytest.fixture(scope="module")
def reference() -> ReferenceSet:
    return ReferenceSet("some", load_reference("organic").molecules[:8])


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = NetworkConfig(elements=(1, 6, 7, 8, 9, 16, 17), n_channels=4, l_max=1)
    return Generator(ForceField(config, scale=0.0), name="random")


QUICK = {"n_steps": 6, "n_particles": 2, "n_refinements": 0, "n_repairs": 0, "seed": 3}


# --- the room inside ---------------------------------------------------------------------------


def test_the_cavity_of_a_cage_is_the_ball_inside() -> None:
    centre = (1.0, -2.0, 5.0)
    prior = shell(7.0, centre=centre).cavity()
    r = (prior.outline() - torch.tensor(centre)).norm(dim=1)
    # Between the atoms of the cage points may be a little farther out.
    assert 3.0 < float(r.max()) < 7.0 - CAVITY_RADIUS + 0.5
    assert prior.outline().mean(0).tolist() == pytest.approx(list(centre), abs=0.6)
    assert prior.size is not None
    assert prior.size.volume == pytest.approx(4 / 3 * np.pi * 4.1**3, rel=0.15)


def test_what_is_outside_is_no_cavity() -> None:
    """Half a cage is open: what is left of its cavity is inside of the bowl."""
    whole = shell(7.0)
    low = whole.positions[:, 2] < 2.0
    bowl = Host(whole.atomic_numbers[low], whole.positions[low])
    outline = bowl.cavity().outline()
    assert float(outline.norm(dim=1).max()) < 4.5
    assert float(outline[:, 2].max()) < 2.5


@pytest.mark.parametrize("host", [shell(2.5, 20), Host(np.array([6]), np.zeros((1, 3)))])
def test_no_room_is_an_error(host: Host) -> None:
    with pytest.raises(InputError, match=r"no room in the host.*give the shape"):
        host.cavity()


def test_two_cavities_are_not_mixed() -> None:
    big, small = shell(8.0, 150), shell(6.0, 90, (20.0, 0.0, 0.0))
    both = Host(
        np.concatenate([big.atomic_numbers, small.atomic_numbers]),
        np.concatenate([big.positions, small.positions]),
    )
    assert float(both.cavity().outline()[:, 0].max()) < 8.0


# --- keeping away ------------------------------------------------------------------------------


def test_the_closest_contact_is_exact() -> None:
    host = Host(np.array([6, 8]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 20.0]]))
    mol = conformer("O")
    x = np.array([[3.0, 0.0, 0.0], [2.4, 0.0, 0.0], [3.3, 0.9, 0.0]])
    mol.GetConformer().SetPositions(x)
    expected = min(3.0 / (CARBON + OXYGEN), 2.4 / (CARBON + HYDROGEN))
    assert host.closest_contact(mol) == pytest.approx(expected)


def test_obstacles_reach_as_far_as_a_carbon_must_stay() -> None:
    host = Host(np.array([6, 8, 1]), np.arange(9.0).reshape(3, 3))
    radii = host.obstacles().radii.tolist()
    assert radii == pytest.approx([CONTACT * (CARBON + r) for r in (CARBON, OXYGEN, HYDROGEN)])


def flat_field(batch: MoleculeBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """A spring on every atom."""
    energies = batch.sum_per_molecule(0.5 * batch.positions.square().sum(1))
    return energies, -batch.positions


def test_walls_have_the_forces_of_their_energy() -> None:
    host = shell(5.0, 40)
    field = host.walled(flat_field)
    generator = torch.Generator().manual_seed(0)
    x = 2.0 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    batch = MoleculeBatch.from_arrays([([6, 1, 8], x[:3]), ([7, 6, 1], x[3:])], dtype=x.dtype)
    forces = field(batch)[1]
    assert float((forces - flat_field(batch)[1]).abs().max()) > 0.1
    step = 1e-5
    for i in range(6):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                moved = x.clone()
                moved[i, axis] += sign * step
                energies.append(float(field(batch.replace(positions=moved))[0].sum()))
            slope = (energies[0] - energies[1]) / (2 * step)
            assert -slope == pytest.approx(float(forces[i, axis]), abs=1e-6)


def test_a_wall_is_as_stiff_as_it_says() -> None:
    host = Host(np.array([6]), np.zeros((1, 3)))
    x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 9.0, 0.0]], dtype=torch.float64)
    batch = MoleculeBatch.from_arrays([([8, 6], x)], dtype=torch.float64)
    energies, forces = host.walled(flat_field)(batch)
    depth = CONTACT * (CARBON + OXYGEN) - 2.0
    assert float(energies) == pytest.approx(0.5 * (4 + 81) + WALL / 2 * depth**2)
    assert forces.tolist() == [[pytest.approx(-2.0 + WALL * depth), 0.0, 0.0], [0.0, -9.0, 0.0]]
    # Atoms that do not move are where they are.
    held = batch.replace(fixed=torch.tensor([True, False]))
    assert float(host.walled(flat_field)(held)[0]) == pytest.approx(0.5 * (4 + 81))


# --- molecules in hosts ------------------------------------------------------------------------


@pytest.mark.parametrize("partners", [False, True])
def test_what_is_made_in_a_cage_never_clashes(
    generator: Generator, reference: ReferenceSet, partners: bool
) -> None:
    """Whatever a random force field makes, heavy atoms stay inside."""
    host = replace(shell(6.5, 110), partners=partners)
    result = generator.generate(6, 4, host=host, reference=reference, **QUICK)
    assert len(result.attempts) == 6
    for attempt in result.attempts:
        heavy = attempt.positions[attempt.atomic_numbers > 1]
        assert len(heavy) <= 4  # none of them is the host's
        assert attempt.report.status is not Status.HOST_CLASH
        distances = np.linalg.norm(heavy[:, None] - host.positions, axis=-1)
        assert distances.min() > CLASH * 2 * CARBON
        if attempt.report.status is Status.OK:
            assert host.closest_contact(attempt.mol) >= CLASH


def test_partners_are_seen_and_obstacles_are_not(
    generator: Generator, reference: ReferenceSet
) -> None:
    host = shell(6.5, 110)
    options = {**QUICK, "prior": Gaussian((1.0, 1.0, 1.0)), "reference": reference}
    with_host = generator.generate(2, 3, host=host, **options)
    with_partners = generator.generate(2, 3, host=replace(host, partners=True), **options)
    alone = generator.generate(2, 3, **options)
    for a, b in zip(with_host.attempts, with_partners.attempts, strict=True):
        assert not np.array_equal(a.positions, b.positions)
    # Where no obstacle is met, it changes nothing but the strength of cohesion.
    assert [a.report.n_heavy for a in alone.attempts] == [
        a.report.n_heavy for a in with_host.attempts
    ]


def test_only_near_heavy_atoms_are_partners() -> None:
    host = Host(np.array([6, 1, 8]), np.array([[5.0, 0, 0], [1.0, 0, 0], [7.0, 0, 0]]))
    assert host.near(np.zeros((1, 3))).tolist() == [0]


def test_a_clash_is_a_status(
    generator: Generator, reference: ReferenceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ethane, put where an atom of the host is in the way."""
    ethane = ([6, 6], [[0.0, 0.0, 0.0], [1.52, 0.0, 0.0]])

    def sample(*arguments, **options) -> Samples:
        return Samples(MoleculeBatch.from_arrays([ethane]), torch.tensor([True]))

    monkeypatch.setattr(maker_module, "evolve", sample)
    monkeypatch.setattr("simgen.host.WALL", 0.0)
    for distance, status in ((2.3, Status.HOST_CLASH), (9.0, Status.OK)):
        host = Host(np.array([8]), np.array([[1.52 + distance, 0.0, 0.0]]))
        result = generator.generate(1, 2, host=host, prior=Gaussian(), reference=reference, **QUICK)
        report = result.reports[0]
        assert report.status is status
        assert ("van der Waals" in report.detail) == (status is Status.HOST_CLASH)


def test_scaffolds_and_hosts_go_together(generator: Generator, reference: ReferenceSet) -> None:
    scaffold = Scaffold.from_mol(conformer("CO"), grow_at=[0])
    host = replace(shell(7.5, 140), partners=True)
    result = generator.generate(2, 2, scaffold=scaffold, host=host, reference=reference, **QUICK)
    for attempt in result.attempts:
        assert attempt.positions[:2].tobytes() == scaffold.positions.tobytes()
        assert (attempt.atomic_numbers > 1).sum() <= 4


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["xyz", "pdb"])
def test_hosts_are_read_from_files(tmp_path: Path, suffix: str) -> None:
    mol = conformer("OCC")
    path = tmp_path / f"host.{suffix}"
    write = {"xyz": Chem.MolToXYZBlock, "pdb": Chem.MolToPDBBlock}[suffix]
    path.write_text(write(mol))
    host = Host.from_file(path, partners=True)
    assert host.partners
    assert host.atomic_numbers.tolist() == [a.GetAtomicNum() for a in mol.GetAtoms()]
    np.testing.assert_allclose(host.positions, mol.GetConformer().GetPositions(), atol=2e-3)
    again = Host.from_dict(host.to_dict())
    assert again.positions.tobytes() == host.positions.tobytes()
    assert again.partners


def test_what_is_no_host_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not exist; check the path"):
        Host.from_file(tmp_path / "none.pdb")
    (tmp_path / "bad.xyz").write_text("not a number\n\nC 0 0 0\n")
    with pytest.raises(LoadError, match=r"cannot read the host .*bring XYZ or PDB") as caught:
        Host.from_file(tmp_path / "bad.xyz")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a host of some atoms"):
        Host(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
    with pytest.raises(InputError, match="a host of some atoms"):
        Host(np.array([6, 6]), np.zeros((1, 3)))
