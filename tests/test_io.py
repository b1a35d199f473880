"""Readers give every entry a record; writers are atomic; what they write can be read back."""

import csv
import errno
import gzip
import json
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from simgen.errors import LoadError, SimgenError
from simgen.io import (
    atomic_path,
    embed,
    read_molecules,
    write_csv,
    write_grid,
    write_json,
    write_sdf,
    write_text,
    write_xyz,
)

ETHANOL = "CCO"
BROKEN_BLOCK = "broken\n\n\nthis is not a molecule\n"
PENTAVALENT = Chem.MolToMolBlock(Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False))


def molecule(smiles: str = ETHANOL) -> Chem.Mol:
    mol = embed(Chem.MolFromSmiles(smiles))
    assert mol is not None
    return mol


@pytest.fixture(scope="module")
def ethanol() -> Chem.Mol:
    return molecule()


@pytest.mark.parametrize("v3000", [False, True])
@pytest.mark.parametrize("suffix", [".sdf", ".sdf.gz"])
def test_sdf_is_read_with_atoms_coordinates_and_names(
    tmp_path: Path, ethanol: Chem.Mol, v3000: bool, suffix: str
) -> None:
    block = Chem.MolToMolBlock(ethanol, forceV3000=v3000)
    text = ("named" + block + "$$$$\n" + block + "$$$$\n").encode()
    path = tmp_path / f"two{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    first, second = read_molecules(path)
    assert (first.name, second.name) == ("named", "two-2")
    assert (first.index, second.index) == (1, 2)
    assert (first.line, second.line) == (1, block.count("\n") + 2)
    assert first.error is None
    assert Chem.MolToSmiles(Chem.RemoveHs(first.mol)) == ETHANOL
    assert first.atomic_numbers.tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1]
    expected = ethanol.GetConformer().GetPositions()
    np.testing.assert_allclose(first.positions, expected, atol=6e-5)  # 4 decimals of the format


def test_bad_sdf_entries_are_rows_and_their_neighbours_survive(
    tmp_path: Path, ethanol: Chem.Mol
) -> None:
    block = Chem.MolToMolBlock(ethanol)
    path = tmp_path / "mixed.sdf"
    path.write_text("$$$$\n".join([block, BROKEN_BLOCK, PENTAVALENT, block]))
    good, broken, pentavalent, last = read_molecules(path)
    assert good.error is None
    assert last.error is None
    assert broken.error == "not a V2000 or V3000 molecule block"
    assert "valence" in pentavalent.error
    assert broken.mol is broken.positions is None


def test_a_flat_drawing_has_no_3d_coordinates(tmp_path: Path) -> None:
    mol = Chem.MolFromSmiles("C[C@H](O)F")
    Chem.rdDepictor.Compute2DCoords(mol)
    path = tmp_path / "flat.sdf"
    path.write_text(Chem.MolToMolBlock(mol))
    (record,) = read_molecules(path)
    assert record.positions is None
    assert Chem.MolToSmiles(record.mol) == "C[C@H](O)F"


def test_stereo_comes_from_3d_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "chiral.sdf"
    write_sdf(path, [molecule("C[C@H](O)F"), molecule("C[C@@H](O)F")])
    smiles = [Chem.MolToSmiles(Chem.RemoveHs(r.mol)) for r in read_molecules(path)]
    assert smiles == ["C[C@H](O)F", "C[C@@H](O)F"]


def test_smiles_files_take_the_first_column_and_count_lines(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text('smiles,name\nCCO,ethanol\n\n"c1ccccc1"\nC1CC\nC(C)(C)(C)(C)C,bad\n# note\n')
    ethanol, benzene, unclosed, pentavalent = read_molecules(path)
    assert (ethanol.name, benzene.name) == ("ethanol", "some-2")
    assert benzene.line == 4
    assert benzene.mol.GetNumAtoms() == 6
    assert benzene.mol.GetAtomWithIdx(0).GetIsAromatic()
    assert ethanol.positions is None
    assert unclosed.error == "not a SMILES string: C1CC"
    assert "valence" in pentavalent.error


def test_xyz_frames_plain_and_extended(tmp_path: Path) -> None:
    path = tmp_path / "frames.xyz"
    path.write_text(
        "1\njust = a comment\nHe 0 0 0\n\n"
        "2\nProperties=species:S:1:pos:R:3 name=hydride\nF 0 0 0.5\nH 0 0 -0.5\n"
    )
    helium, hydride = read_molecules(path)
    assert helium.atomic_numbers.tolist() == [2]
    assert hydride.name == "hydride"
    assert hydride.line == 5
    np.testing.assert_array_equal(hydride.positions, [[0, 0, 0.5], [0, 0, -0.5]])


def test_a_bad_xyz_frame_is_a_row_and_the_next_frame_is_read(tmp_path: Path) -> None:
    path = tmp_path / "frames.xyz"
    path.write_text("1\n\nHe 0 0 x\n1\n\nHe 0 0 nan\n1\n\nHe 0 0 1\n5\n\nHe 0 0 0\n")
    letters, nan, good, truncated = read_molecules(path)
    assert letters.error is not None
    assert nan.error == "coordinates that are not finite"
    assert good.error is None
    assert truncated.error == "expected 5 lines of atoms, got 1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.sdf", b"", "is empty"),
        ("blank.smi", b"\n \n", "is empty"),
        ("noise.sdf", b"\x00\xff\xfe", "not a text file"),
        ("words.sdf", b"hello\nworld\n", "no readable molecule"),
        ("words.xyz", b"hello\nworld\n", "expected a number of atoms, got 'hello'"),
        ("cut.sdf.gz", gzip.compress(b"CCO" * 100, mtime=0)[:20], "cannot read"),
        ("plain.smi.gz", b"CCO", "cannot read"),
        ("molecules.pdf", b"CCO", "cannot tell the format"),
        ("molecules", b"CCO", "cannot tell the format"),
    ],
)
def test_files_without_a_molecule_give_one_clear_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LoadError, match=message) as caught:
        read_molecules(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder_are_load_errors(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not exist"):
        read_molecules(tmp_path / "none.sdf")
    folder = tmp_path / "folder.sdf"
    folder.mkdir()
    with pytest.raises(LoadError, match="cannot read"):
        read_molecules(folder)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 6, 7, 8, 15, 16, 17, 35]),
            st.tuples(*[st.floats(-50, 50, allow_subnormal=False)] * 3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_xyz_round_trip(tmp_path_factory: pytest.TempPathFactory, atoms: list) -> None:
    path = tmp_path_factory.mktemp("xyz") / "frame.xyz"
    numbers, positions = zip(*atoms, strict=True)
    write_xyz(path, [ase.Atoms(numbers, positions, info={"name": "a b", "status": "ok"})])
    (record,) = read_molecules(path)
    assert record.name == "a b"
    assert record.atomic_numbers.tolist() == list(numbers)
    np.testing.assert_allclose(record.positions, positions, atol=1e-7)  # 8 decimals
    assert ase.io.read(path).info["status"] == "ok"


def test_sdf_keeps_properties(tmp_path: Path, ethanol: Chem.Mol) -> None:
    mol = Chem.Mol(ethanol)
    mol.SetProp("_Name", "one")
    mol.SetProp("status", "ok")
    mol.SetDoubleProp("qed", 0.5)
    write_sdf(tmp_path / "one.sdf", [mol])
    (record,) = read_molecules(tmp_path / "one.sdf")
    assert record.name == "one"
    assert record.mol.GetPropsAsDict()["qed"] == 0.5


def test_tables_and_json(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"a": 1, "b": "x,y"}, {"a": None}], ["a", "b"])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "x,y"], ["", ""]]
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv(tmp_path / "t.csv", [{"c": 1}], ["a", "b"])
    write_json(tmp_path / "t.json", {"a": [1, None]})
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "t.json", float("nan"))


@pytest.mark.parametrize("n_molecules", [0, 1, 7, 130])
def test_grid_is_a_png_of_the_size_of_its_rows(
    tmp_path: Path, ethanol: Chem.Mol, n_molecules: int
) -> None:
    path = tmp_path / "grid.png"
    write_grid(path, [ethanol] * n_molecules, ["a legend"] * n_molecules)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    n_drawn = min(max(n_molecules, 1), 100)
    assert width == 260 * min(5, n_drawn)
    assert height == 240 * -(-n_drawn // 5)


def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_a_full_disk_and_a_file_in_the_way_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    message = r"cannot write .*x\.txt: No space left on device; free"
    with pytest.raises(SimgenError, match=message), atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    (tmp_path / "file").write_text("")
    with pytest.raises(SimgenError, match="cannot write"):
        write_text(tmp_path / "file" / "x.txt", "text")
