"""Generation end to end with a small random force field: what it makes is nonsense, how is not."""

import csv
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simgen.composition import Composition
from simgen.descriptors.settings import NetworkInvariants, TensorReduced
from simgen.errors import ConfigError, DeviceError, InputError, LoadError
from simgen.evolution import evolve
from simgen.filters import Filters
from simgen.finishing.status import Status
from simgen.generation import (
    Attempt,
    GenerationConfig,
    GenerationResult,
    Generator,
    model_digest,
)
from simgen.generation import finish as finish_module
from simgen.generation import maker as maker_module
from simgen.generation import run as run_module
from simgen.io import read_molecules
from simgen.models import ForceField, FrozenForceField, NetworkConfig
from simgen.models.compiled import library
from simgen.molecules import MoleculeBatch
from simgen.priors import (
    Circle,
    Gaussian,
    Line,
    PointCloud,
    Prior,
    PriorForm,
    prior_from_dict,
    prior_to_dict,
)
from simgen.reference import ReferenceSet, load_reference
from simgen.sampling import Samples
from simgen.validation import Report, molecule_key

CONFIGS = st.builds(
    GenerationConfig,
    n_molecules=st.integers(1, 10**6),
    n_heavy_atoms=st.tuples(st.integers(2, 20), st.integers(20, 200)),
    seed=st.integers(0, 2**64 - 1),
    prior=st.sampled_from([Gaussian(), Gaussian((1.0, 2.0, 3.0)), Line(3.0), Circle(2.0)]),
    reference=st.text(),
    composition=st.builds(
        Composition,
        st.permutations(["C", "N", "O", "S"]).map(tuple),
        weights=st.just({"C": 2.0}),
        at_most=st.dictionaries(st.sampled_from(["N", "O"]), st.integers(0, 5)),
        charge=st.sampled_from([None, 1]),
    ),
    descriptor=st.sampled_from([NetworkInvariants(n_layers=None), TensorReduced(n_channels=4)]),
    filters=st.sampled_from([Filters(), Filters(("[#8]-[#8]",), ("pains",), reject=False)]),
    n_steps=st.integers(4, 100),
)


@given(CONFIGS)
def test_the_configuration_survives_json(config: GenerationConfig) -> None:
    again = GenerationConfig.from_json(config.to_json())
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"n_heavy_atom": 3},
            "unknown key 'n_heavy_atom'; expected one of composition, descriptor",
        ),
        ({"n_molecules": 0}, "expected n_molecules to be an integer from 1"),
        ({"n_molecules": 1.5}, "expected n_molecules to be an integer"),
        ({"seed": -1}, "expected seed"),
        ({"n_steps": 3}, "expected n_steps"),
        ({"n_heavy_atoms": [9, 5]}, "ascending pair"),
        ({"n_heavy_atoms": [1, 5]}, "from 2 to 200"),
        ({"n_heavy_atoms": [1, 2, 3]}, "ascending pair"),
        ({"composition": {"elements": ["C", "C"]}}, "different"),
        ({"composition": {"elements": []}}, "different"),
        ({"composition": {"elements": ["C", "H"]}}, "hydrogens are added at the end"),
        ({"composition": {"elements": ["Xx"]}}, "expected a chemical symbol"),
        ({"descriptor": {"kind": "soap"}}, "expected a descriptor of kind network"),
        ({"descriptor": {"kind": "tensor_reduced", "size": 1}}, "other settings of a descriptor"),
        ({"prior": {"kind": "cube"}}, "expected a prior of kind gaussian, line"),
        ({"prior": {"kind": "gaussian", "size": 1}}, "cannot make a gaussian prior"),
        ({"prior": {"kind": "gaussian", "covariance": [1, 1, -1]}}, "cannot make a gaussian"),
    ],
)
def test_bad_configurations_name_what_is_wrong(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerationConfig.from_dict(values)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_what_is_not_a_json_object_is_no_configuration(text: str) -> None:
    with pytest.raises(ConfigError, match="JSON"):
        GenerationConfig.from_json(text)


@pytest.mark.parametrize(
    "prior",
    [
        Gaussian((1.0, 1.0, 8.0), strength=0.3),
        Circle(radius=3.0),
        Line(5.0, form=PriorForm.PUBLISHED),
        PointCloud(torch.eye(3, dtype=torch.float64), beta=2.0),
    ],
)
def test_a_prior_made_from_its_description_has_the_same_score(prior) -> None:
    batch = MoleculeBatch.from_arrays([([6] * 4, np.arange(12.0).reshape(4, 3))])
    again = prior_from_dict(json.loads(json.dumps(prior_to_dict(prior))))
    torch.testing.assert_close(again.score(batch, 1.0), prior.score(batch, 1.0))


def test_a_prior_of_ones_own_is_named_but_cannot_be_made_again() -> None:
    class Mine(Gaussian):
        pass

    description = prior_to_dict(Mine())
    assert description["kind"].endswith("Mine")
    with pytest.raises(ConfigError, match="expected a prior of kind"):
        prior_from_dict(description)


# --- whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> ReferenceSet:
    organic = load_reference("organic")
    return ReferenceSet("some", organic.molecules[:12])


@pytest.fixture(scope="module")
def generator() -> Generator:
    # Scale zero: descriptors are those of a random network, but all forces vanish.
    config = NetworkConfig(elements=(1, 6, 7, 8, 9, 15, 16, 17, 35), n_channels=4, l_max=1)
    return Generator(ForceField(config, scale=0.0), name="random")


Run = Callable[..., GenerationResult]


@pytest.fixture(scope="module")
def run(generator: Generator, reference: ReferenceSet) -> Run:
    defaults = {"n_steps": 6, "n_particles": 2, "n_repairs": 1, "seed": 5, "reference": reference}

    def generate(n_molecules: int = 5, **options: object) -> GenerationResult:
        return generator.generate(n_molecules, (3, 6), **(defaults | options))

    return generate


def assert_same(mine: GenerationResult, theirs: GenerationResult) -> None:
    """Bit for bit, but for relaxation where there is no compiler."""
    tolerance = 1e-3 if library(torch.float32) is None else 0.0
    assert len(mine.attempts) == len(theirs.attempts)
    for a, b in zip(mine.attempts, theirs.attempts, strict=True):
        assert a.atomic_numbers.tolist() == b.atomic_numbers.tolist()
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=tolerance)
        similarity = pytest.approx(b.report.similarity, rel=tolerance, abs=0.0)
        assert replace(a.report, similarity=similarity) == b.report


def test_the_batch_size_does_not_matter(run: Run) -> None:
    whole = run()
    for batch_size in (1, 3):
        assert_same(run(batch_size=batch_size), whole)


def test_a_closed_curve_is_more_than_its_points(
    generator: Generator, reference: ReferenceSet
) -> None:
    """Molecules are to go round it, if it is not too long for their atoms."""

    def positions(prior: Prior) -> list[np.ndarray]:
        made = generator.generate(
            3, 6, prior=prior, reference=reference, n_steps=6, n_particles=2, n_repairs=0, seed=5
        )
        return [attempt.positions for attempt in made.attempts]

    for curve, same in ((Circle(1.4), False), (Circle(1.5), True), (Line(6.0), True)):
        pairs = zip(positions(curve), positions(PointCloud(curve.points)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) is same


def test_atoms_take_the_places_of_those_of_a_molecule(
    generator: Generator, reference: ReferenceSet
) -> None:
    places = torch.tensor([[1.25 * k, 0.6 * (k % 2), 0.0] for k in range(6)], dtype=torch.float64)

    def farthest_place(occupied: bool) -> Tensor:
        """For each molecule the largest distance of a place from its nearest atom."""
        seen: list[MoleculeBatch] = []
        generator.generate(
            16, 6, prior=PointCloud(places, occupied=occupied), reference=reference, n_steps=20,
            n_particles=1, n_refinements=0, n_repairs=0, seed=5,
            observer=lambda progress: seen.append(progress.molecules),
        )  # fmt: skip
        positions = seen[-1].positions.to(places).view(16, 6, 3)
        return torch.cdist(positions, places).amin(1).amax(1)

    # What becomes of a single molecule depends on rounding, and so on the processor.
    taken, free = farthest_place(True).median(), farthest_place(False).median()
    assert taken < 0.7
    assert taken < 0.7 * free


def test_the_number_of_processes_does_not_matter(run: Run, tmp_path: Path) -> None:
    whole = run(out=tmp_path / "one", trajectory=True)
    shared = run(n_workers=2, out=tmp_path / "two", trajectory=True)
    assert_same(shared, whole)
    assert set(shared.timings) == set(whole.timings)
    for folder in ("one", "two"):
        assert len(list((tmp_path / folder / "trajectories").iterdir())) == 5


@pytest.mark.parametrize(
    ("n_heavy_atoms", "batch_size", "budget", "sizes"),
    [
        (5, None, 2**30, [80, 20]),  # 400 atoms at a time
        (5, 30, 2**30, [30, 30, 30, 10]),
        (150, None, 2**30, [2] * 50),
        (150, None, 2**20, [1] * 100),  # one molecule, however little memory there is
        (150, 7, 2**27, [5] * 20),
    ],
)
def test_chunks_have_so_many_atoms_and_fit_into_memory(
    generator: Generator,
    reference: ReferenceSet,
    monkeypatch: pytest.MonkeyPatch,
    n_heavy_atoms: int,
    batch_size: int | None,
    budget: int,
    sizes: list[int],
) -> None:
    made: list[int] = []

    class Recorder:
        def __init__(self, *arguments: object, **options: object) -> None:
            self.timings: dict[str, float] = {}

        def make(self, chunk: list[int], *rest: object) -> list[Attempt]:
            made.append(len(chunk))
            nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 3))
            return [Attempt(k, Report(str(k), Status.NONFINITE), *nothing) for k in chunk]

    monkeypatch.setattr("simgen.generation.run.Maker", Recorder)
    monkeypatch.setattr("simgen.generation.run.memory_budget", lambda device: budget)
    generator.generate(100, n_heavy_atoms, reference=reference, batch_size=batch_size, seed=0)
    assert made == sizes


@pytest.mark.parametrize("n_workers", [1, 2])
def test_progress_only_grows(run: Run, n_workers: int) -> None:
    reports: list[float] = []
    run(n_workers=n_workers, batch_size=2, callback=lambda done, total: reports.append(done))
    assert reports[0] == 0
    assert reports == sorted(reports)
    assert reports[-1] == 5


def test_an_attempt_does_not_depend_on_how_many_there_are(run: Run) -> None:
    few, many = run(2), run(5)
    for a, b in zip(few.attempts, many.attempts, strict=False):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-3)


def test_the_seed_is_drawn_and_recorded(run: Run) -> None:
    first, second = run(1, seed=None), run(1, seed=None)
    assert first.seed != second.seed
    assert_same(run(1, seed=first.seed), first)


def test_sizes_are_drawn_from_the_whole_range(run: Run) -> None:
    result = run(60, n_steps=4, n_particles=1, n_repairs=0)
    sizes = {a.report.n_heavy or len(a.atomic_numbers) for a in result.attempts}
    assert sizes >= {3, 4, 5, 6}
    assert max(sizes) == 6


def test_the_callback_sees_progress_rise_to_the_end(run: Run) -> None:
    seen: list[tuple[float, int]] = []
    run(3, batch_size=2, callback=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert (seen[0], seen[-1]) == ((0, 3), (3, 3))
    assert any(d % 1 for d in done)


# --- files -------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_attempt_is_in_every_table(run: Run, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    table = rows(tmp_path)
    assert [row["name"] for row in table] == [f"simgen-{k:05d}" for k in range(5)]
    frames = ase.io.read(tmp_path / "molecules.xyz", index=":")
    assert [f.info["status"] for f in frames] == [row["status"] for row in table]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["counts"] == dict(Counter(row["status"] for row in table))
    assert record["n_attempts"] == 5
    assert record["seed"] == record["config"]["seed"] == 5
    assert GenerationConfig.from_dict(record["config"]).to_dict() == result.config.to_dict()
    assert record["versions"]["torch"] == torch.__version__
    assert record["reference"]["sha256"]
    assert set(record["timings"]) > {"sampling", "relaxation", "validation"}
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_trajectories_end_where_the_sampling_ends(run: Run, tmp_path: Path) -> None:
    run(3, out=tmp_path, batch_size=2, trajectory=True)
    paths = sorted((tmp_path / "trajectories").iterdir())
    assert [p.name for p in paths] == [f"simgen-{k:05d}.xyz" for k in range(3)]
    frames = ase.io.read(paths[0], index=":")
    assert [f.info["step"] for f in frames] == [2, 4, 5]
    assert frames[-1].info["sigma"] == pytest.approx(1e-3)
    with pytest.raises(InputError, match="output folder for the trajectories"):
        run(1, trajectory=True)


class InterruptionError(Exception):
    """Stands for Ctrl-C, which pytest would take for one."""


def interrupted(run: Run, folder: Path, *, after: float, **options: object) -> None:
    def callback(done: float, total: int) -> None:
        if done > after:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        run(out=folder, batch_size=2, callback=callback, **options)


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(run: Run, tmp_path: Path) -> None:
    whole = run(out=tmp_path / "whole", batch_size=2)
    folder = tmp_path / "cut"
    interrupted(run, folder, after=2.1)
    assert len(rows(folder)) == 2
    assert json.loads((folder / "run.json").read_text())["n_attempts"] == 2
    # A kill may leave half a line.
    with (folder / "attempts.jsonl").open("a") as journal:
        journal.write('{"attempts": [{"ind')
    # Without a seed the one of the run is taken.
    resumed = run(out=folder, resume=True, seed=None)
    assert_same(resumed, whole)
    assert rows(folder)[0] == rows(tmp_path / "whole")[0]
    assert resumed.timings["sampling"] > 0
    again = run(out=folder, resume=True)
    assert_same(again, whole)


def test_only_the_same_run_can_be_resumed(
    run: Run, generator: Generator, reference: ReferenceSet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(LoadError, match="no run to resume"):
        run(out=folder, resume=True)
    run(1, out=folder)
    with pytest.raises(ConfigError, match="already holds a run; go on with it"):
        run(1, out=folder)
    with pytest.raises(ConfigError, match="n_steps is 6 there and 7 here"):
        run(1, out=folder, resume=True, n_steps=7)
    with pytest.raises(ConfigError, match="kind is gaussian there and circle here"):
        run(1, out=folder, resume=True, prior=Circle())
    other = ReferenceSet("some", reference.molecules[1:])
    with pytest.raises(ConfigError, match="molecules is"):
        run(1, out=folder, resume=True, reference=other)
    retrained = Generator(ForceField(generator.model.config, seed=1), name="random")
    with pytest.raises(ConfigError, match="weights is"):
        retrained.generate(
            1,
            (3, 6),
            out=folder,
            resume=True,
            reference=reference,
            n_steps=6,
            n_particles=2,
            n_repairs=1,
        )
    journal = folder / "attempts.jsonl"
    journal.write_text("{\n" + journal.read_text())
    with pytest.raises(LoadError, match="damaged"):
        run(1, out=folder, resume=True)


# --- what can go wrong -------------------------------------------------------------------------


def test_a_chunk_that_is_too_large_is_cut(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    sizes: list[int] = []

    def scarce(score, batch, *arguments, **options):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return evolve(score, batch, *arguments, **options)

    monkeypatch.setattr(maker_module, "evolve", scarce)
    assert_same(run(), whole)
    assert sizes == [5, 2, 2, 1]


def test_what_is_finished_is_kept_when_a_worker_is_killed(run: Run, tmp_path: Path) -> None:
    def kill(done: float, total: int) -> None:
        if done > 1:  # more than half of what each of the two is at
            for process in multiprocessing.active_children():
                process.kill()

    options = {"n_workers": 2, "batch_size": 1, "out": tmp_path / "run"}
    with pytest.raises(DeviceError, match="worker process was killed"):
        run(**options, callback=kill)
    assert (tmp_path / "run" / "molecules.xyz").exists()
    assert_same(run(**options, resume=True), run())


def test_one_molecule_that_is_too_large_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*arguments, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(maker_module, "evolve", scarce)
    with pytest.raises(DeviceError, match="not enough memory on cpu for one molecule"):
        run()


def test_chunks_fit_the_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    sizes: list[int] = []

    def watched(score, batch, *arguments, **options):
        sizes.append(len(batch))
        return evolve(score, batch, *arguments, **options)

    monkeypatch.setattr(maker_module, "evolve", watched)
    monkeypatch.setattr(run_module, "memory_budget", lambda device: 0)
    assert_same(run(batch_size=4), whole)
    assert sizes == [1] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": ["C", "Si"]}, "random lacks Si; it knows H, C, N"),
        ({"elements": ["C", "Zz"]}, "expected a chemical symbol"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"n_steps": 2}, "expected n_steps"),
        ({"seed": -1}, "expected seed"),
    ],
)
def test_bad_arguments(run: Run, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**options)


def test_a_model_without_hydrogen_cannot_finish_molecules(reference: ReferenceSet) -> None:
    model = ForceField(NetworkConfig(elements=(6, 7, 8), n_channels=4, l_max=1))
    with pytest.raises(InputError, match="lacks H"):
        Generator(model).generate(1, 3, reference=reference, n_steps=4)


def test_model_digests_tell_weights_apart(generator: Generator) -> None:
    config = generator.model.config
    assert model_digest(ForceField(config, scale=0.0)) == model_digest(generator.model)
    assert model_digest(ForceField(config, scale=0.0, seed=1)) != model_digest(generator.model)


# --- finishing, from skeletons of real molecules -----------------------------------------------


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, reference: ReferenceSet) -> list[str]:
    """Replace the sampler by one that returns heavy atoms of real molecules, and some junk."""
    chosen = [m for m in reference.molecules if m.kept.sum() == (m.atomic_numbers > 1).sum()][:3]
    skeletons = [(m.atomic_numbers[m.kept], m.positions[m.kept]) for m in (*chosen, chosen[0])]
    far = np.arange(4.0)[:, None] * [0.0, 0.0, 50.0]
    skeletons += [([6, 6, 6, 6], far), ([6, 8], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.42]])]

    def sample(score, batch, sigmas, *, noise, **options):
        indices = noise.sample_idx.tolist()
        batch = MoleculeBatch.from_arrays([skeletons[k] for k in indices])
        return Samples(batch, torch.tensor([k != 5 for k in indices]))

    monkeypatch.setattr(maker_module, "evolve", sample)
    return [molecule_key(m.mol) for m in chosen]


@pytest.mark.parametrize("resumed", [False, True])
def test_real_skeletons_become_the_molecules_they_are_from(
    run: Run, real: list[str], tmp_path: Path, resumed: bool
) -> None:
    result = run(6, out=tmp_path)
    if resumed:
        result = run(6, out=tmp_path, resume=True)
    reports = result.reports
    statuses = [r.status for r in reports]
    assert statuses == [Status.OK] * 4 + [Status.TOO_FEW_ATOMS, Status.NONFINITE]
    assert [molecule_key(r.smiles) for r in reports[:4]] == [*real, real[0]]
    assert [r.duplicate_of for r in reports] == [None] * 3 + ["simgen-00000"] + [None] * 2
    assert all(r.known_in_reference for r in reports[:4])
    assert reports[4].n_dropped == 4
    assert reports[5].similarity is None

    assert len(result.molecules) == len(result.atoms) == 4
    for mol, atoms in zip(result.molecules, result.atoms, strict=True):
        assert mol.GetNumAtoms() == len(atoms)
        np.testing.assert_allclose(mol.GetConformer().GetPositions(), atoms.positions, atol=1e-5)
    records = read_molecules(tmp_path / "molecules.sdf")
    assert [molecule_key(r.mol) for r in records] == [*real, real[0]]
    assert records[3].mol.GetProp("duplicate_of") == "simgen-00000"
    assert records[0].name == "simgen-00000"
    assert float(records[0].mol.GetProp("qed")) == pytest.approx(reports[0].qed, rel=1e-3)
    assert records[0].n_missing_hydrogens == 0
    frames = ase.io.read(tmp_path / "molecules.xyz", index=":")
    assert len(frames[4]) == 4  # the skeleton, as finishing failed


def test_a_molecule_smaller_than_asked_for_is_incomplete(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = ([6, 8, 6], [[0.0, 0.0, 0.0], [1.42, 0.0, 0.0], [50.0, 0.0, 0.0]])

    def sample(*arguments, **options):
        return Samples(MoleculeBatch.from_arrays([skeleton]), torch.tensor([True]))

    monkeypatch.setattr(maker_module, "evolve", sample)
    result = run(1, n_repairs=0)
    assert result.reports[0].status is Status.INCOMPLETE
    assert result.reports[0].detail == "1 of 3 heavy atoms lay apart"
    assert result.molecules == []


def test_a_reference_without_bonds_knows_no_molecules(
    run: Run, real: list[str], reference: ReferenceSet
) -> None:
    bare = ReferenceSet("bare", tuple(replace(m, mol=None) for m in reference.molecules))
    assert [r.known_in_reference for r in run(3, reference=bare).reports] == [None] * 3


def test_what_falls_into_a_hole_of_the_field_keeps_its_classical_geometry(
    run: Run, real: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapse(self, batch: MoleculeBatch) -> tuple[torch.Tensor, torch.Tensor]:
        energies = batch.sum_per_molecule(10.0 * batch.positions.square().sum(1))
        return energies, -20.0 * batch.positions

    monkeypatch.setattr(FrozenForceField, "energy_and_forces", collapse)
    for report, smiles in zip(run(3).reports, real, strict=True):
        assert report.status is Status.OK
        assert molecule_key(report.smiles) == smiles
        assert report.detail == "relaxed classically: the force field has a hole here"
        assert report.relaxation_energy is None


def test_forces_that_stay_large_are_a_status(
    run: Run, real: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish_module, "_RELAXATION_STEPS", 3)

    def pull(self, batch: MoleculeBatch) -> tuple[torch.Tensor, torch.Tensor]:
        forces = torch.zeros_like(batch.positions)
        if not batch.fixed.any():  # a push on everything changes no bond
            forces[:, 0] = 0.1
        return -batch.sum_per_molecule(0.1 * batch.positions[:, 0]), forces

    monkeypatch.setattr(FrozenForceField, "energy_and_forces", pull)
    report = run(1).reports[0]
    assert report.status is Status.UNCONVERGED
    assert report.detail == "forces above 0.03 eV/A after 3 steps"
    assert report.relaxation_energy > 0
