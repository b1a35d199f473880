"""The molecules inside the RDKit wheel: where training and reference molecules come from.

RDKit's Data and Contrib folders hold the first 5,000 structures of the NCI open database, the
10,000 WEHI molecules of the PAINS test set, CDK2, c-Met and EGFR ligand series and a few smaller
lists. No download is needed, and everybody with the same RDKit version has the same molecules.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from simgen.errors import LoadError

ELEMENTS: tuple[int, ...] = (1, 6, 7, 8, 9, 15, 16, 17, 35)
"""Atomic numbers covered: H C N O F P S Cl Br."""

_DATA = Path(RDConfig.RDDataDir)
_CONTRIB = Path(RDConfig.RDContribDir)


@dataclass(frozen=True, slots=True)
class CollectionMolecule:
    """One distinct molecule: canonical SMILES, and the collection that had it first."""

    smiles: str
    source: str


def _smiles_lines() -> Iterator[tuple[str, str]]:
    """Yield every (SMILES, source) of the collections, unchecked."""
    for source, path, column in (
        ("NCI", _DATA / "NCI/first_5K.smi", 0),
        ("CDK2", _CONTRIB / "Fastcluster/cdk2.smi", 1),
        ("CHEMBL2321810", _CONTRIB / "FreeWilson/data/CHEMBL2321810.smi", 0),
        ("ChEMBL_11265", _CONTRIB / "fraggle/data/ChEMBL_11265_actives.smi", 0),
    ):
        for line in _existing(path).read_text().splitlines():
            if len(fields := line.split()) > column:
                yield fields[column], source
    with _existing(_DATA / "Pains/test_data/wehi_mols.csv").open(newline="") as file:
        for row in csv.reader(file):
            yield row[0], "WEHI"
    for source, path in (
        ("c-Met", _CONTRIB / "FreeWilson/data/cmet_ligands.sdf"),
        ("EGFR", _CONTRIB / "PBF/testData/egfr.sdf"),
    ):
        with Chem.SDMolSupplier(str(_existing(path))) as supplier:
            for mol in supplier:
                if mol is not None:
                    yield Chem.MolToSmiles(mol), source


def _existing(path: Path) -> Path:
    if not path.exists():
        raise LoadError(
            f"expected RDKit's collection {path.name} in {path.parent}, which this RDKit lacks; "
            "install the rdkit wheel from PyPI (conda packages leave these files out)"
        )
    return path


@lru_cache(maxsize=4)
def load_collections(
    min_heavy_atoms: int = 2, max_heavy_atoms: int = 30
) -> tuple[CollectionMolecule, ...]:
    """Distinct neutral closed-shell molecules of the collections, in a fixed order.

    Of salts and mixtures the largest component is taken. Stereochemistry is kept.

    Parameters
    ----------
    min_heavy_atoms, max_heavy_atoms : int
        Sizes kept, both inclusive.
    """
    molecules: dict[str, CollectionMolecule] = {}
    with rdBase.BlockLogs():
        for smiles, source in _smiles_lines():
            component = max(smiles.split("."), key=len)
            mol = Chem.MolFromSmiles(component)
            if mol is None or not min_heavy_atoms <= mol.GetNumHeavyAtoms() <= max_heavy_atoms:
                continue
            if not is_supported(mol):
                continue
            canonical = Chem.MolToSmiles(mol)
            molecules.setdefault(canonical, CollectionMolecule(canonical, source))
    return tuple(sorted(molecules.values(), key=lambda m: (stable_hash(m.smiles), m.smiles)))


def is_supported(mol: Chem.Mol) -> bool:
    """Whether a molecule is neutral, closed-shell, without isotopes, and of known elements."""
    return (
        all(
            a.GetAtomicNum() in ELEMENTS and a.GetNumRadicalElectrons() == 0 and a.GetIsotope() == 0
            for a in mol.GetAtoms()
        )
        and Chem.GetFormalCharge(mol) == 0
    )


def stable_hash(text: str) -> int:
    """64-bit hash of a string, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def scaffold_split(mol: Chem.Mol) -> str:
    """Put a molecule into ``train``, ``valid`` (5 %) or ``test`` (5 %) by its Murcko scaffold.

    Molecules with one scaffold always share a part; acyclic ones are their own scaffold.
    """
    scaffold: Chem.Mol = MurckoScaffold.GetScaffoldForMol(mol)  # type: ignore[no-untyped-call]
    key = Chem.MolToSmiles(scaffold if scaffold.GetNumAtoms() else mol, isomericSmiles=False)
    part = stable_hash(key) % 20
    return {0: "test", 1: "valid"}.get(part, "train")
