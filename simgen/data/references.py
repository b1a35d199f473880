"""Make the shipped reference set from the relaxed geometries of the training set."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem

from simgen.data.build import SPLITS, Dataset
from simgen.data.recipe import KINDS, RELAXED_FORCE, Kind, Origin
from simgen.io import atomic_path
from simgen.validation import check_graph_kept

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
        conformer = Chem.Conformer(mol.GetNumAtoms())
        conformer.SetPositions(dataset.positions[atoms])
        mol.AddConformer(conformer)
        if not check_graph_kept(mol).passed:
            continue
        mol.SetProp("_Name", smiles)
        mol.SetProp("smiles", smiles)
        mol.SetProp("method", f"GFN2-xTB minimum, largest force {RELAXED_FORCE} eV/A")
        mol.SetProp("energy_eV", f"{dataset.energies[i]:.4f}")
        yield mol


def write_references(dataset: Dataset, path: Path) -> int:
    """Write the reference set as a gzipped SDF file; returns the number of molecules."""
    n_molecules = 0
    # mtime=0 and no name in the header: the same molecules give the same bytes.
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as file,
    ):
        for mol in reference_molecules(dataset):
            block = Chem.MolToMolBlock(mol)
            properties = "".join(f">  <{name}>\n{mol.GetProp(name)}\n\n" for name in _PROPERTIES)
            file.write(f"{block}{properties}$$$$\n".encode())
            n_molecules += 1
    return n_molecules
