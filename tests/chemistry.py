"""Molecules for tests."""

from rdkit import Chem
from rdkit.Chem import AllChem


def conformer(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    AllChem.MMFFOptimizeMolecule(mol, maxIters=1000)
    return mol
