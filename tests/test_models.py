import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import physics
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from simgen.errors import ConfigError, InputError, LoadError
from simgen.models import (
    PRESETS,
    ForceField,
    FrozenForceField,
    NetworkConfig,
    ace,
    botnet,
    evaluator,
    list_models,
    load_model,
    mace,
    nequip,
    read_metadata,
    save_model,
)
from simgen.models.angular import spherical_harmonics, wigner_3j
from simgen.models.edges import Neighbourhoods
from simgen.models.mace_interop import to_mace
from simgen.models.product import (
    SparsePolynomials,
    couplings,
    monomials,
    symmetric_basis,
    to_monomials,
)
from simgen.models.radial import (
    SILU_NORM,
    TANH_NORM,
    RadialBasis,
    RadialNetwork,
    polynomial_cutoff,
)
from simgen.molecules import MoleculeBatch

ELEMENTS = (1, 6, 8)
SMALL = {"elements": ELEMENTS, "n_channels": 4, "radial_widths": (8,), "r_max": 3.0}
CONFIGS = {
    "invariant": NetworkConfig(**SMALL),
    "l_max_2": NetworkConfig(**SMALL, l_max=2, correlation=2),
    "one_linear_layer": NetworkConfig(**SMALL, n_layers=1, readout_width=0),
    "vectors": NetworkConfig(**SMALL, hidden_l_max=1, n_layers=3, l_max=2),
    "tensors": NetworkConfig(**SMALL, hidden_l_max=2, correlation=2, first_residual=True),
    "density": NetworkConfig(**SMALL, density_normalised=True, hidden_l_max=1, l_max=1),
    "shared_weights": NetworkConfig(
        **SMALL, l_max=2, hidden_l_max=1, product_by_element=False, residual_by_element=False
    ),
    "parity_and_product": NetworkConfig(
        **SMALL, l_max=2, hidden_l_max=1, n_layers=3, parity=True, nonlinearity="gate"
    ),
    "pseudoscalars": nequip(
        ELEMENTS, n_channels=4, r_max=3.0, l_max=1, hidden_l_max=1, avg_n_neighbours=4.0
    ),
    "ace": ace(ELEMENTS, n_channels=4, r_max=3.0),
    "botnet": botnet(ELEMENTS, n_channels=4, r_max=3.0, l_max=2, hidden_l_max=2),
    "nequip": nequip(
        ELEMENTS, n_channels=4, r_max=3.0, l_max=2, hidden_l_max=2, n_layers=3, avg_n_neighbours=4.0
    ),
    "mace": mace(ELEMENTS, n_channels=4, r_max=3.0, l_max=2),
}


def make_model(config: NetworkConfig) -> ForceField:
    energies = [-0.5 * z for z in config.elements]
    model = ForceField(config, atomic_energies=energies, scale=3.0, shift=0.25, seed=1)
    return model.to(torch.float64)


@pytest.fixture(scope="module")
def model() -> ForceField:
    return make_model(CONFIGS["invariant"])


# --- physics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_physics(name: str) -> None:
    physics.check_all(make_model(CONFIGS[name]), physics.random_batch(ELEMENTS))


@pytest.mark.parametrize("name", list_models())
def test_physics_of_shipped_models(name: str) -> None:
    model = load_model(name, dtype=torch.float64)
    batch = physics.random_batch(model.elements)
    physics.check_euclidean_symmetry(model, batch)
    physics.check_permutation(model, batch)
    physics.check_batching(model, batch)
    physics.check_extensivity(model, batch)
    physics.check_smooth_at_cutoff(model)


def test_physics_checks_can_fail(model: ForceField) -> None:
    class Broken(ForceField):
        def forward(self, batch: MoleculeBatch, pairs: torch.Tensor | None = None) -> torch.Tensor:
            atoms = batch.positions[:, 0] * torch.arange(batch.n_atoms) + 1.0
            return super().forward(batch, pairs) + batch.sum_per_molecule(atoms)

    broken = Broken(CONFIGS["invariant"]).to(torch.float64)
    batch = physics.random_batch(ELEMENTS)
    for check in (
        physics.check_euclidean_symmetry,
        physics.check_permutation,
        physics.check_batching,
        physics.check_extensivity,
        physics.check_forces,
    ):
        with pytest.raises(AssertionError):
            check(broken, batch)
    with pytest.raises(AssertionError):
        physics.check_isolated_atoms(broken)


@pytest.mark.parametrize("name", ["vectors", "ace", "nequip"])
def test_forces_can_be_trained_on(name: str) -> None:
    """The gradient of a loss on the forces with respect to the weights, by finite differences."""
    model = make_model(CONFIGS[name])
    batch = physics.random_batch(ELEMENTS, counts=(4, 3))

    def loss() -> torch.Tensor:
        energies, forces = model.energy_and_forces(batch, create_graph=True)
        return energies.square().sum() + forces.square().sum()

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for name, weight in model.named_parameters():
        if not weight.numel():
            continue
        assert weight.grad is not None, name
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            weight += step * direction
        high = loss().item()
        with torch.no_grad():
            weight -= 2 * step * direction
        low = loss().item()
        with torch.no_grad():
            weight += step * direction
        expected = (high - low) / (2 * step)
        assert float((weight.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_pairs_given_or_not_are_the_same(model: ForceField) -> None:
    from simgen.graph import molecule_pairs

    batch = physics.random_batch(ELEMENTS)
    assert torch.equal(model(batch), model(batch, molecule_pairs(batch)))


def test_a_batch_without_atoms(model: ForceField) -> None:
    batch = MoleculeBatch.from_arrays([], dtype=torch.float64)
    energies, forces = model.energy_and_forces(batch)
    assert energies.shape == (0,)
    assert forces.shape == (0, 3)


# --- the design space ------------------------------------------------------------------------


def test_presets_are_the_published_networks() -> None:
    described = {
        "ace": {"n_layers": 1, "correlation": 3, "readout_width": 0, "radial_by_element": True},
        "botnet": {"n_layers": 5, "correlation": 1, "nonlinearity": "none", "readouts": "all"},
        "nequip": {"correlation": 1, "nonlinearity": "gate", "readouts": "last", "parity": True},
        "mace": {"n_layers": 2, "correlation": 3, "nonlinearity": "none", "readouts": "all"},
    }
    assert set(described) == set(PRESETS)
    for name, fields in described.items():
        config = PRESETS[name](ELEMENTS, n_channels=7)
        assert {field: getattr(config, field) for field in fields} == fields
        assert (config.elements, config.n_channels) == (ELEMENTS, 7)
    assert not mace(ELEMENTS).beyond_mace


def test_a_linear_readout_makes_a_map_of_the_products_superfluous() -> None:
    mixed = make_model(CONFIGS["one_linear_layer"])
    config = replace(mixed.config, product_mixed=False)
    assert config.beyond_mace == ("product_mixed",)
    weights = mixed.state_dict()
    linear = weights.pop("layers.0.linear")[0] / math.sqrt(config.n_channels)
    weights["readouts.0"] = linear @ weights["readouts.0"]
    plain = make_model(config)
    plain.load_state_dict(weights)
    batch = physics.random_batch(ELEMENTS)
    for one, other in zip(
        mixed.energy_and_forces(batch), plain.energy_and_forces(batch), strict=True
    ):
        physics.assert_close(one, other, 1e-12)
    # The features themselves are those that the map mixes.
    mixed_by_hand = plain.node_invariants(batch) @ linear
    physics.assert_close(mixed.node_invariants(batch), mixed_by_hand, 1e-12)


TINY = {"n_channels": 4, "l_max": 1, "avg_n_neighbours": 4.0}


def many_body_terms(model: ForceField, n_atoms: int) -> list[float]:
    """Energy that only all of the first 2, 3, ... atoms together have (inclusion-exclusion)."""
    batch = physics.random_batch(ELEMENTS, counts=(n_atoms,), seed=4)
    positions, numbers = batch.positions * 0.6, batch.atomic_numbers
    subsets = [[i for i in range(n_atoms) if k >> i & 1] for k in range(1, 2**n_atoms)]
    molecules = [(numbers[subset], positions[subset]) for subset in subsets]
    with torch.no_grad():
        energies = model(MoleculeBatch.from_arrays(molecules, dtype=torch.float64)).tolist()
    return [
        sum(
            (-1) ** (order - len(subset)) * energy
            for subset, energy in zip(subsets, energies, strict=True)
            if max(subset) < order
        )
        for order in range(2, n_atoms + 1)
    ]


@pytest.mark.parametrize(
    ("config", "body_order"),
    [
        (ace(ELEMENTS, **TINY, correlation=1), 2),
        (ace(ELEMENTS, **TINY, correlation=2), 3),
        (ace(ELEMENTS, **TINY, correlation=3), 4),
        (botnet(ELEMENTS, **TINY, hidden_l_max=1, n_layers=2, readout_width=0), 3),
        (botnet(ELEMENTS, **TINY, hidden_l_max=1, n_layers=3, readout_width=0), 4),
        (mace(ELEMENTS, **TINY, hidden_l_max=0, n_layers=1, readout_width=0), 4),
        (nequip(ELEMENTS, **TINY, hidden_l_max=1, n_layers=2), 6),
    ],
)
def test_body_order(config: NetworkConfig, body_order: int) -> None:
    """Correlation nu makes terms of nu + 1 bodies, a layer without nonlinearity adds one body."""
    model = ForceField(config, seed=2).to(torch.float64)
    terms = many_body_terms(model, 6)
    assert all(abs(term) > 1e-9 for term in terms[: body_order - 1])
    assert all(abs(term) < 1e-11 for term in terms[body_order - 1 :])


def test_radial_weights_of_a_pair_of_elements_act_on_that_pair_only() -> None:
    model = make_model(CONFIGS["ace"])
    batch = MoleculeBatch.from_arrays([([1, 8], [[0, 0, 0], [0, 0, 1.0]])], dtype=torch.float64)
    model(batch).sum().backward()
    gradient = model.layers[0].interaction.radial.weights[0].grad
    # Pairs in the order HH, HC, CC, HO, CO, OO.
    of_pair = gradient.reshape(6, model.config.n_radial, -1).abs().amax((1, 2))
    assert (of_pair > 0).tolist() == [False, False, False, True, False, False]


def test_pseudoscalars_change_sign_in_a_mirror() -> None:
    model = make_model(CONFIGS["pseudoscalars"])
    batch = physics.random_batch(ELEMENTS, counts=(6,))

    def features(batch: MoleculeBatch) -> list[torch.Tensor]:
        graph = model._graph(batch, None, None)
        values = [(graph.one_hot @ (model.embedding / math.sqrt(len(ELEMENTS))))[None]]
        for layer in list(model.layers)[:3]:
            values = layer(values, graph)
        return values

    irreps = model.layers[2].irreps
    assert set(irreps) == {(0, 1), (1, -1), (0, -1), (1, 1)}
    with torch.no_grad():
        here = features(batch)
        there = features(batch.replace(positions=-batch.positions))
    for (_, parity), x, y in zip(irreps, here, there, strict=True):
        largest = float(x.abs().max())
        assert largest > 1e-9
        torch.testing.assert_close(y, parity * x, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("name", ["ace", "nequip", "mace"])
def test_evaluator_is_the_network(name: str) -> None:
    model = make_model(CONFIGS[name]).requires_grad_(False)
    batch = physics.random_batch(ELEMENTS)
    fast = evaluator(model)
    assert isinstance(fast, FrozenForceField) == (name == "mace")
    for found, expected in zip(
        fast.energy_and_forces(batch), model.energy_and_forces(batch), strict=True
    ):
        physics.assert_close(found, expected, 1e-9)
    # Descriptors: the first layer, with coinciding atoms.
    positions = batch.positions.clone()
    positions[1] = positions[0]
    positions.requires_grad_()
    batch = batch.replace(positions=positions)
    expected = model.node_invariants(batch, n_layers=1, min_distance=0.75)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator())
    (gradient,) = torch.autograd.grad((weight * expected).sum(), positions)
    fast = evaluator(model, n_layers=1, min_distance=0.75)
    features, pullback = fast.linearise(batch.replace(positions=positions.detach()))
    physics.assert_close(features, expected.detach(), 1e-9)
    physics.assert_close(pullback(weight), gradient, 1e-9)


def test_only_a_mace_can_be_exported_to_mace_torch() -> None:
    with pytest.raises(InputError, match="parity, product_by_element, nonlinearity, readouts"):
        to_mace(make_model(CONFIGS["nequip"]))


def test_a_config_from_before_the_other_presets_is_a_mace() -> None:
    text = """{"elements": [1, 8], "r_max": 4.5, "n_radial": 8, "cutoff_power": 5,
        "radial_widths": [64, 64, 64], "l_max": 2, "hidden_l_max": 0, "n_channels": 96,
        "correlation": 3, "n_layers": 2, "first_residual": false, "density_normalised": false,
        "avg_n_neighbours": 13.16, "readout_width": 16}"""
    config = NetworkConfig.from_json(text)
    assert not config.beyond_mace
    assert set(json.loads(config.to_json())) > set(json.loads(text))


# --- invariants ------------------------------------------------------------------------------


def test_invariants_do_not_evaluate_later_layers(
    model: ForceField, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = physics.random_batch(ELEMENTS)
    both = model.node_invariants(batch, n_layers=2)
    assert both.shape == (batch.n_atoms, 8)
    monkeypatch.setattr(model.layers[1], "forward", None)
    assert torch.equal(model.node_invariants(batch), both[:, :4])
    with pytest.raises(TypeError):
        model.node_invariants(batch, n_layers=2)


def test_short_distances_count_as_the_minimum(model: ForceField) -> None:
    def invariants(distance: float, min_distance: float | None) -> torch.Tensor:
        positions = [[0.0, 0.0, 0.0], [0.0, 0.6 * distance, 0.8 * distance]]
        batch = MoleculeBatch.from_arrays([([6, 8], positions)], dtype=torch.float64)
        return model.node_invariants(batch, min_distance=min_distance)

    physics.assert_close(invariants(0.3, 0.75), invariants(0.75, None))
    physics.assert_close(invariants(1.3, 0.75), invariants(1.3, None))
    assert not torch.allclose(invariants(0.3, None), invariants(0.75, None))


def test_coinciding_atoms_have_finite_gradients(model: ForceField) -> None:
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1.1, 0, 0]], dtype=torch.float64)
    positions.requires_grad_()
    batch = MoleculeBatch(positions, torch.tensor([6, 8, 1]), torch.zeros(3, dtype=torch.int64))
    invariants = model.node_invariants(batch, min_distance=0.75)
    (gradient,) = torch.autograd.grad(invariants.square().sum(), positions)
    assert torch.isfinite(invariants).all()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), [(17, "Cl"), (0, "0"), (-3, "-3"), (500, "500")])
def test_unknown_elements_are_named(model: ForceField, number: int, name: str) -> None:
    batch = MoleculeBatch.from_arrays([([6, number], np.eye(3)[:2])], dtype=torch.float64)
    with pytest.raises(InputError, match=f"H C O; got {name}$"):
        model(batch)


def test_another_dtype_is_refused(model: ForceField) -> None:
    with pytest.raises(InputError, match=r"float64.*float32"):
        model(physics.random_batch(ELEMENTS, dtype=torch.float32))


def test_as_many_atomic_energies_as_elements() -> None:
    with pytest.raises(InputError, match="3 atomic energies"):
        ForceField(CONFIGS["invariant"], atomic_energies=[1.0])


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_round_trip(name: str) -> None:
    assert NetworkConfig.from_json(CONFIGS[name].to_json()) == CONFIGS[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"elements": ()},
        {"elements": (6, 1)},
        {"elements": (1, 1)},
        {"r_max": 0.0},
        {"r_max": math.nan},
        {"l_max": 4},
        {"hidden_l_max": 4},
        {"correlation": 0},
        {"n_channels": 0},
        {"radial_widths": (0,)},
        {"readout_width": -1},
        {"nonlinearity": "relu"},
        {"radial_basis": "splines"},
        {"readouts": "first"},
        {"parity": True, "correlation": 1},
    ],
)
def test_bad_configs_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        NetworkConfig.from_dict({**SMALL, **changes})


@pytest.mark.parametrize("text", ['{"elements": [1], "typo": 1}', "{}", "[]", "not json"])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        NetworkConfig.from_json(text)


def test_same_seed_same_weights_and_no_global_state() -> None:
    state = torch.random.get_rng_state()
    one, two = (ForceField(CONFIGS["vectors"], seed=3) for _ in range(2))
    other = ForceField(CONFIGS["vectors"], seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, weight in one.named_parameters():
        assert torch.equal(weight, two.get_parameter(name))
        assert not torch.equal(weight, other.get_parameter(name))


# --- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_round_trip(name: str, tmp_path: Path) -> None:
    model = make_model(CONFIGS[name])
    path = tmp_path / "model.safetensors"
    card = {"error": 1.5, "text": "ä", "list": [1, None]}
    save_model(model, path, card)
    loaded = load_model(path, dtype=torch.float64)
    batch = physics.random_batch(ELEMENTS)
    assert torch.equal(loaded(batch), model(batch))
    assert read_metadata(path) == card
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert load_model(path).embedding.dtype == torch.float32


def test_constants_do_not_lose_precision_on_the_way_through_float32(model: ForceField) -> None:
    there_and_back = make_model(CONFIGS["vectors"]).to(torch.float32).to(torch.float64)
    for module in there_and_back.modules():
        for name, exact in getattr(module, "_exact", {}).items():
            assert torch.equal(module.get_buffer(name), exact)


def test_unknown_models_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=", ".join(list_models())):
        load_model("no such model")
    with pytest.raises(LoadError):
        load_model(tmp_path)


def test_files_that_are_not_ours_are_refused(model: ForceField, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path, {})
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118

    def refused(match: str) -> None:
        with pytest.raises(LoadError, match=match):
            load_model(path)

    path.write_bytes(b"")
    refused("safetensors")
    path.write_bytes(whole[: len(whole) // 2])
    refused("safetensors")
    torch.save(tensors, path)
    refused("safetensors")
    save_file(tensors, path)
    refused("something else")
    save_file(tensors, path, {**header, "format_version": "999"})
    refused("999")
    save_file(tensors, path, {**header, "config": "{}"})
    refused("header")
    del header["metadata"]
    save_file(tensors, path, header)
    refused("header")
    header["metadata"] = "{}"
    save_file({**tensors, "embedding": torch.zeros(2)}, path, header)
    refused("embedding")
    del tensors["embedding"]
    save_file(tensors, path, header)
    refused("embedding")


def test_a_failed_save_keeps_the_old_file(model: ForceField, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path, {"version": 1})
    with pytest.raises(TypeError):
        save_model(model, path, {"version": object()})
    assert read_metadata(path) == {"version": 1}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", list_models())
def test_shipped_models_are_small_and_described(name: str) -> None:
    from simgen.models.weights import find_model

    assert find_model(name).stat().st_size < 8_000_000
    assert json.dumps(read_metadata(name)) != "{}"


# --- angular parts ---------------------------------------------------------------------------


def unit_vectors(n: int) -> torch.Tensor:
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 3)))
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_spherical_harmonics_against_e3nn() -> None:
    o3 = pytest.importorskip("e3nn.o3")
    unit = unit_vectors(20)
    expected = o3.spherical_harmonics([0, 1, 2, 3], unit, True, normalization="component")
    for l_max in range(4):
        ours = spherical_harmonics(unit, l_max)
        physics.assert_close(ours, expected[:, : (l_max + 1) ** 2], 1e-14)


def test_spherical_harmonics_are_orthonormal_on_the_sphere() -> None:
    """Exact quadrature: Gauss-Legendre along y, equidistant around it."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angles = np.arange(16) * (2 * np.pi / 16)
    y, angle = (part.ravel() for part in np.meshgrid(nodes, angles, indexing="ij"))
    radius = np.sqrt(1 - y**2)
    unit = torch.from_numpy(np.stack([radius * np.sin(angle), y, radius * np.cos(angle)], axis=1))
    values = spherical_harmonics(unit, 3).numpy()
    overlap = (values * np.repeat(weights / 32, 16)[:, None]).T @ values
    np.testing.assert_allclose(overlap, np.eye(16), atol=1e-13)


@pytest.mark.parametrize("l_1", range(7))
def test_couplings_against_e3nn(l_1: int) -> None:
    o3 = pytest.importorskip("e3nn.o3")
    for l_2 in range(7):
        for l_3 in range(abs(l_1 - l_2), min(l_1 + l_2, 4) + 1):
            theirs = o3.wigner_3j(l_1, l_2, l_3, dtype=torch.float64).numpy()
            np.testing.assert_allclose(wigner_3j(l_1, l_2, l_3), theirs, atol=1e-13)


def test_couplings_are_invariant() -> None:
    rotation = physics.random_rotation(0, 1)
    places = [slice(ell**2, (ell + 1) ** 2) for ell in range(4)]
    one, two = (
        spherical_harmonics(x, 3) for x in (unit_vectors(40), unit_vectors(40) @ rotation.T)
    )
    turns = [torch.linalg.lstsq(one[:, s], two[:, s]).solution.T.numpy() for s in places]
    for l_1 in range(4):
        for l_2 in range(4):
            for l_3 in range(abs(l_1 - l_2), min(l_1 + l_2, 3) + 1):
                w = wigner_3j(l_1, l_2, l_3)
                turned = np.einsum("abc,ia,jb,kc->ijk", w, turns[l_1], turns[l_2], turns[l_3])
                np.testing.assert_allclose(turned, w, atol=1e-12)


# --- radial parts ----------------------------------------------------------------------------


def test_radial_basis_is_the_published_formula() -> None:
    r_max, p = 4.5, 6
    r = np.linspace(0.3, 5.0, 50)
    u = r / r_max
    envelope = (
        1
        - (p + 1) * (p + 2) / 2 * u**p
        + p * (p + 2) * u ** (p + 1)
        - p * (p + 1) / 2 * u ** (p + 2)
    ) * (u < 1)
    n = np.arange(1, 6)
    expected = np.sqrt(2 / r_max) * np.sin(np.pi * n * r[:, None] / r_max) / r[:, None]
    ours = RadialBasis(r_max, 5, p)(torch.from_numpy(r))
    np.testing.assert_allclose(ours.numpy(), expected * envelope[:, None], atol=1e-13)


def test_chebyshev_polynomials_are_cosines() -> None:
    r = np.linspace(0.0, 2.5, 40)
    ours = RadialBasis(3.0, 5, 5, "chebyshev")(torch.from_numpy(r)).numpy()
    angle = np.arccos(1 - 2 * r / 3.0)
    expected = np.stack([np.cos(n * angle) for n in range(5)], axis=1)
    envelope = polynomial_cutoff(torch.from_numpy(r), 3.0, 5).numpy()
    np.testing.assert_allclose(ours, expected * envelope[:, None], atol=1e-12)


def test_cutoff_ends() -> None:
    r = torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64)
    assert polynomial_cutoff(r, 2.0, 5).tolist() == [1.0, 0.0, 0.0]


def test_radial_network_against_e3nn() -> None:
    nn = pytest.importorskip("e3nn.nn")
    ours = RadialNetwork((5, 8, 7, 3), torch.Generator().manual_seed(0)).double()
    theirs = nn.FullyConnectedNet([5, 8, 7, 3], torch.nn.functional.silu).double()
    with torch.no_grad():
        for mine, layer in zip(ours.weights, theirs.children(), strict=True):
            layer.weight.copy_(mine)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(10, 5)))
    physics.assert_close(ours(x), theirs(x), 1e-13)


@pytest.mark.parametrize(
    ("activation", "norm"), [(torch.nn.functional.silu, SILU_NORM), (torch.tanh, TANH_NORM)]
)
def test_activation_has_unit_second_moment(
    activation: Callable[[torch.Tensor], torch.Tensor], norm: float
) -> None:
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    moment = torch.trapezoid((norm * activation(z)) ** 2 * density, z)
    assert float(moment) == pytest.approx(1.0, abs=5e-3)


# --- product basis ---------------------------------------------------------------------------


def multiplicity(l_max: int, l_out: int, degree: int) -> int:
    """How often l_out is in the symmetric power of 0 + ... + l_max, by characters of O(3)."""
    theta = (np.arange(2000) + 0.5) * np.pi / 2000

    def character(l: int, angle: np.ndarray, inverted: bool) -> np.ndarray:  # noqa: E741
        value = 1 + 2 * sum(np.cos(m * angle) for m in range(1, l + 1))
        return (-1) ** (l * inverted) * value * np.ones_like(angle)

    total = 0.0
    for inverted in (False, True):

        def power(n: int, inverted: bool = inverted) -> np.ndarray:
            odd = inverted and n % 2 == 1
            return sum(character(ell, n * theta, odd) for ell in range(l_max + 1))

        symmetric = {
            1: power(1),
            2: (power(1) ** 2 + power(2)) / 2,
            3: (power(1) ** 3 + 3 * power(1) * power(2) + 2 * power(3)) / 6,
        }[degree]
        measure = 2 * np.sin(theta / 2) ** 2 / len(theta)
        total += (symmetric * character(l_out, theta, inverted) * measure).sum() / 2
    assert total == pytest.approx(round(total), abs=1e-8)
    return round(total)


@pytest.mark.parametrize("l_max", [1, 2, 3])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_basis_is_complete_and_independent(l_max: int, degree: int) -> None:
    for l_out in range(min(l_max, 2) + 1):
        basis, n_couplings = symmetric_basis(l_max, l_out, degree)
        assert len(basis) == multiplicity(l_max, l_out, degree) <= n_couplings
        flat = basis.reshape(len(basis), -1)
        assert np.linalg.matrix_rank(flat, tol=1e-6) == len(basis)


def test_number_of_invariants_of_degree_three() -> None:
    basis, n_couplings = symmetric_basis(3, 0, 3)
    assert (len(basis), n_couplings) == (8, 23)


def test_monomials_evaluate_the_tensors() -> None:
    x = np.random.default_rng(0).normal(size=9)
    for *_, tensor in couplings(2, 3):
        expected = np.einsum("iabc,a,b,c->i", tensor, x, x, x)
        values = np.prod(x[monomials(9, 3)], axis=1)
        np.testing.assert_allclose(to_monomials(tensor, 3) @ values, expected, atol=1e-12)


def test_sparse_polynomials_and_their_derivatives() -> None:
    polynomials: list[dict[tuple[int, ...], float]] = [
        {(0,): 2.0, (1, 1): -1.5, (0, 1, 2): 0.5},
        {(2, 2, 2): 1.0, (0, 0, 1): 3.0, (0, 2): -1.0},
        {(1, 1, 1): -2.0},
    ]
    function = SparsePolynomials(3, polynomials)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4))).requires_grad_()
    expected = torch.stack(
        [sum(c * x[list(key)].prod(0) for key, c in p.items()) for p in polynomials]
    )
    physics.assert_close(function(x), expected)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_columns_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    function = SparsePolynomials(2, [{(0, 0, 1): 1.0, (1,): 2.0}])
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 7))).requires_grad_()
    whole = function(x)
    monkeypatch.setattr("simgen.models.product._COLUMNS_AT_ONCE", 3)
    assert torch.equal(function(x), whole)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


# --- neighbourhoods --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000), st.integers(1, 4))
def test_neighbourhoods_hold_every_edge_twice(n_atoms: int, seed: int, n_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = np.nonzero(np.triu(rng.random((n_atoms, n_atoms)) < 0.4, 1))
    edges = torch.from_numpy(np.stack([first, second]))
    degree = torch.bincount(edges.reshape(-1), minlength=n_atoms)
    sizes = [len(part) for part in np.array_split(np.arange(n_atoms), n_blocks)]
    blocks = tuple((len(part), int(part.max()) if len(part) else 0) for part in degree.split(sizes))
    hoods = Neighbourhoods.build(edges, blocks, torch.float64)
    atoms = torch.arange(n_atoms, dtype=torch.float64)[:, None]
    mask = hoods.sign.abs()
    # The sum over neighbours j of (1 + j) x_e, written as a dense matrix product.
    values = torch.from_numpy(rng.normal(size=edges.shape[1]))
    dense = torch.zeros(n_atoms, n_atoms, dtype=torch.float64)
    dense[edges[0], edges[1]] = values
    expected = (dense + dense.T) @ (1 + atoms)
    slots = hoods.from_edges(values[:, None]) * (1 + hoods.from_senders(atoms)) * mask
    physics.assert_close(torch.cat([part.sum(1) for part in hoods.split(slots)]), expected)
    # Directions are opposite at the two ends.
    signed = torch.cat(
        [part.sum(1) for part in hoods.split(hoods.from_edges(values[:, None]) * hoods.sign)]
    )
    physics.assert_close(signed[:, 0], (dense.T - dense).sum(1))

    def total(edge_values: torch.Tensor, atom_values: torch.Tensor) -> torch.Tensor:
        return (hoods.from_edges(edge_values).sin() * hoods.from_senders(atom_values) * mask).sum()

    inputs = (values[:, None].requires_grad_(), atoms.requires_grad_())
    if edges.shape[1]:
        assert torch.autograd.gradcheck(total, inputs)
        assert torch.autograd.gradgradcheck(total, inputs)
