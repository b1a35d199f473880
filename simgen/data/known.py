"""Make the shipped file of known chemistry."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from rdkit import Chem

from simgen.data.collections import load_collections
from simgen.io import atomic_path
from simgen.known import KnownChemistry, collect


def write_known(path: Path) -> KnownChemistry:
    """Make the shipped file: all molecules of the collections, of 1 to 1,000 heavy atoms."""
    smiles = (molecule.smiles for molecule in load_collections(1, 1000))
    known = collect(Chem.MolFromSmiles(text) for text in smiles)
    data = {
        "n_molecules": known.n_molecules,
        "valences": sorted(known.valences),
        "environments": sorted(known.environments),
        "ring_systems": sorted(known.ring_systems),
    }
    # mtime=0: the same molecules give the same bytes.
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(data).encode(), 9, mtime=0))
    return known
