"""Substructures that are not wanted: patterns of one's own, and published collections of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from rdkit import Chem
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

from simgen.errors import ConfigError

_CATALOGS: Mapping[str, FilterCatalogParams.FilterCatalogs] = {
    "pains": FilterCatalogParams.FilterCatalogs.PAINS,
    "brenk": FilterCatalogParams.FilterCatalogs.BRENK,
    "nih": FilterCatalogParams.FilterCatalogs.NIH,
    "zinc": FilterCatalogParams.FilterCatalogs.ZINC,
}

CATALOGS = tuple(_CATALOGS)
"""Names of the collections, as RDKit ships them."""


@dataclass(frozen=True, eq=False)
class Filters:
    """What molecules are searched for.

    Attributes
    ----------
    forbidden : tuple of str
        SMARTS patterns.
    catalogs : tuple of str
        Collections: ``pains`` [1]_, ``brenk`` [2]_, ``nih`` [3]_, ``zinc``.
    reject : bool
        Whether molecules in which something is found are rejected, or only say so.

    Raises
    ------
    ConfigError
        If a pattern cannot be read, or there is no such collection.

    References
    ----------
    .. [1] J. B. Baell, G. A. Holloway, J. Med. Chem. 53, 2719 (2010).
    .. [2] R. Brenk et al., ChemMedChem 3, 435 (2008).
    .. [3] A. Jadhav et al., J. Med. Chem. 53, 37 (2010).

    Examples
    --------
    >>> Filters(forbidden=("[#8]-[#8]",)).alerts(Chem.MolFromSmiles("COOC"))
    ['[#8]-[#8]']
    """

    forbidden: tuple[str, ...] = ()
    catalogs: tuple[str, ...] = ()
    reject: bool = True

    def __post_init__(self) -> None:
        for name in ("forbidden", "catalogs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for catalog in self.catalogs:
            if catalog not in _CATALOGS:
                raise ConfigError(f"expected a filter of {', '.join(CATALOGS)}, got {catalog!r}")
        for smarts in self.forbidden:
            if Chem.MolFromSmarts(smarts) is None:
                raise ConfigError(f"expected a SMARTS pattern to forbid, got {smarts!r}")

    @cached_property
    def _patterns(self) -> list[tuple[str, Chem.Mol]]:
        return [(smarts, Chem.MolFromSmarts(smarts)) for smarts in self.forbidden]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to search for."""
        return not (self.forbidden or self.catalogs)

    def alerts(self, mol: Chem.Mol) -> list[str]:
        """Return what is found in a molecule: patterns, and entries of the collections."""
        found = [s for s, pattern in self._patterns if mol.HasSubstructMatch(pattern)]
        for name in self.catalogs:
            matches = _catalog(name).GetMatches(mol)
            found += [f"{name}: {match.GetDescription()}" for match in matches]
        return found

    def atoms(self, mol: Chem.Mol) -> set[int]:
        """Atoms of what is found in a molecule."""
        found = {
            atom
            for _, pattern in self._patterns
            for match in mol.GetSubstructMatches(pattern)
            for atom in match
        }
        for name in self.catalogs:
            for entry in _catalog(name).GetMatches(mol):
                for match in entry.GetFilterMatches(mol):
                    found |= {atom for _, atom in match.atomPairs}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the filters as what JSON can hold; :meth:`from_dict` undoes it."""
        return {
            "forbidden": list(self.forbidden),
            "catalogs": list(self.catalogs),
            "reject": self.reject,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Filters:
        """Make filters of what :meth:`to_dict` returns."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"cannot make filters: {error}") from None


@lru_cache
def _catalog(name: str) -> FilterCatalog:
    parameters = FilterCatalogParams()
    parameters.AddCatalog(_CATALOGS[name])
    return FilterCatalog(parameters)
