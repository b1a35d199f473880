"""Per-element tables.

Covalent radii in angstrom: B. Cordero et al., "Covalent radii revisited", Dalton Trans. 2008,
2832, table 2 (carbon: sp3 value).
"""

from types import MappingProxyType

from simgen.errors import InputError

_PERIODIC_TABLE = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge "
    "As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm "
    "Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U "
    "Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)

SYMBOLS: tuple[str, ...] = tuple(_PERIODIC_TABLE.split())
"""Chemical symbols by atomic number; index 0 is a placeholder."""

ATOMIC_NUMBERS = MappingProxyType({symbol: z for z, symbol in enumerate(SYMBOLS) if z > 0})
"""Atomic number by chemical symbol."""

COVALENT_RADII = MappingProxyType(
    {
        1: 0.31,
        5: 0.84,
        6: 0.76,
        7: 0.71,
        8: 0.66,
        9: 0.57,
        14: 1.11,
        15: 1.07,
        16: 1.05,
        17: 1.02,
        34: 1.20,
        35: 1.20,
        53: 1.39,
    }
)
"""Covalent radius in angstrom by atomic number, for the elements of organic chemistry."""


def atomic_number(symbol: str) -> int:
    """Return the atomic number of a chemical symbol.

    Raises
    ------
    InputError
        If the symbol is not that of an element.

    Examples
    --------
    >>> atomic_number("Cl")
    17
    """
    try:
        return ATOMIC_NUMBERS[symbol.strip()]
    except KeyError:
        raise InputError(
            f"expected a chemical symbol such as C or Cl, got {symbol!r}; "
            "check spelling and capitals"
        ) from None


def parse_elements(text: str) -> tuple[int, ...]:
    """Atomic numbers of a comma-separated list of symbols, in the order given.

    Examples
    --------
    >>> parse_elements("C,N,O")
    (6, 7, 8)
    """
    return tuple(atomic_number(symbol) for symbol in text.split(",") if symbol.strip())
