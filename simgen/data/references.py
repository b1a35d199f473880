"""Make the shipped reference set from the relaxed geometries of the training set."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

from simgen.data.build import SPLITS, Dataset
from simgen.data.recipe import KINDS, RELAXED_FORCE, Kind, Origin
from simgen.finishing.connectivity import bonded_pairs

_PROPERTIES = ("smiles", "method", "energy_eV")


def reference_molecules(dataset: Dataset) -> Iterator[Chem.Mol]:
    """Yield the collections' molecules at their GFN2-xTB minima, with bonds and properties.

    Molecules of the training scaffolds only, so that held-out ones stay unseen in generation too;
    those whose bonds changed in the relaxation are left out.
    """
    chosen = np.flatnonzero(
        (dataset.kind == KINDS.index(Kind.RELAXED))
        & (dataset.split == SPLITS.index("train"))
        & (dataset.origins[dataset.task] == Origin.COLLECTION)
    )
    for i in chosen:
        atoms = slice(dataset.first_atom[i], dataset.first_atom[i] + dataset.counts[i])
        smiles = str(dataset.keys[dataset.task[i]])
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        numbers, positions = dataset.numbers[atoms], dataset.positions[atoms]
        bonds = {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in mol.GetBonds()}
        if bonded_pairs(numbers, positions) != bonds:
            continue
        conformer = Chem.Conformer(mol.GetNumAtoms())
        for atom, position in enumerate(positions):
            conformer.SetAtomPosition(atom, Point3D(*map(float, position)))
        mol.AddConformer(conformer)
        mol.SetProp("_Name", smiles)
        mol.SetProp("smiles", smiles)
        mol.SetProp("method", f"GFN2-xTB minimum, largest force {RELAXED_FORCE} eV/A")
        mol.SetProp("energy_eV", f"{dataset.energies[i]:.4f}")
        yield mol


def write_references(dataset: Dataset, path: Path) -> int:
    """Write the reference set as a gzipped SDF file; returns the number of molecules."""
    n_molecules = 0
    partial = path.with_suffix(".part")
    # mtime=0 and no name in the header: the same molecules give the same bytes.
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for mol in reference_molecules(dataset):
            block = Chem.MolToMolBlock(mol)
            properties = "".join(f">  <{name}>\n{mol.GetProp(name)}\n\n" for name in _PROPERTIES)
            file.write(f"{block}{properties}$$$$\n".encode())
            n_molecules += 1
    partial.replace(path)
    return n_molecules
