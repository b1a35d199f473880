"""``simgen generate`` and ``simgen run``."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from simgen.cli.priors import AUTO, PANEL, Scale, Shape, Solid, make_prior
from simgen.cli.progress import Device, Model, if_interrupted, progress_bar
from simgen.errors import ConfigError, InputError
from simgen.processes import worker_context

if TYPE_CHECKING:
    from rdkit import Chem

    from simgen.composition import Composition
    from simgen.descriptors.settings import DescriptorSettings
    from simgen.host import Host
    from simgen.priors import AtomPrior
    from simgen.scaffold import Scaffold

_METHOD = "Method"
_SCAFFOLD = "Scaffold and surroundings"
_COMPOSITION = "Composition"
_FILTERS = "Filters"

CAVITY = "cavity"
"""The shape of the room inside a host."""


class DescriptorName(StrEnum):
    """What atoms are compared by."""

    MACE = "mace"
    MACE_ALL_LAYERS = "mace-all-layers"
    BOTNET = "botnet"
    NEQUIP = "nequip"
    ACE = "ace"
    TENSOR_REDUCED = "tensor-reduced"
    UNTRAINED = "untrained"

    @property
    def settings(self) -> DescriptorSettings:
        """The settings that the name stands for."""
        from simgen.descriptors.settings import NetworkInvariants, TensorReduced

        match self:
            case DescriptorName.MACE:
                return NetworkInvariants()
            case DescriptorName.MACE_ALL_LAYERS:
                return NetworkInvariants(n_layers=None)
            case DescriptorName.UNTRAINED:
                return NetworkInvariants(trained=False)
            case DescriptorName.TENSOR_REDUCED:
                return TensorReduced()
            case _:
                # Shipped networks; those without a product basis need all their layers.
                return NetworkInvariants(str(self), n_layers=None)


Descriptor = Annotated[
    DescriptorName,
    typer.Option(
        help="What environments are compared by: the first layer of the force field, all of its "
        "layers, another network, random products without any training, or the first layer "
        "untrained.",
        rich_help_panel=_METHOD,
    ),
]

Number = TypeVar("Number", int, float)


def parse_sizes(text: str) -> tuple[int, int]:
    """Read a number of heavy atoms, or a range of them.

    Examples
    --------
    >>> parse_sizes("9"), parse_sizes("8-14")
    ((9, 9), (8, 14))
    """
    low, separator, high = text.partition("-")
    try:
        return int(low), int(high if separator else low)
    except ValueError:
        raise InputError(
            f"expected --heavy-atoms as a number, a range such as 8-14 or auto, got {text!r}"
        ) from None


def parse_counts(text: str, option: str, number: Callable[[str], Number]) -> dict[str, Number]:
    """Read numbers by element.

    Examples
    --------
    >>> parse_counts("N=2,O=1", "--at-most", int)
    {'N': 2, 'O': 1}
    """
    counts = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        symbol, _, value = part.partition("=")
        try:
            counts[symbol.strip()] = number(value)
        except ValueError:
            raise InputError(
                f"expected {option} as numbers by element, such as N=2,O=1, got {text!r}"
            ) from None
    return counts


def parse_elements(text: str) -> tuple[tuple[str, ...], dict[str, float]]:
    """Read elements, each with its weight if it has one.

    Examples
    --------
    >>> parse_elements("C=4,N,O")
    (('C', 'N', 'O'), {'C': 4.0})
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    weighted = ",".join(part for part in parts if "=" in part)
    symbols = tuple(part.partition("=")[0].strip() for part in parts)
    return symbols, parse_counts(weighted, "--elements", float)


def parse_sites(text: str) -> list[int] | str:
    """Read atoms to grow at: their indices, or a SMARTS pattern.

    Examples
    --------
    >>> parse_sites("0,4"), parse_sites("[nX2]")
    ([0, 4], '[nX2]')
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        return text


def _usual_size(
    scaffold: Path | None, link: list[Path] | None, core: str | None, formula: str | None
) -> str:
    """Return what --heavy-atoms is where it is not given."""
    if link or core or formula:
        return AUTO
    return "12" if scaffold is None else "4"


def _fitting_size(prior: AtomPrior, density: float | None) -> int:
    """Return the number of heavy atoms that suits a shape, if molecules of that size are made."""
    from simgen.generation import MAX_HEAVY_ATOMS
    from simgen.priors import suggest_atoms

    n_atoms = suggest_atoms(prior, density)
    if n_atoms > MAX_HEAVY_ATOMS:
        raise InputError(
            f"expected a shape for at most {MAX_HEAVY_ATOMS} heavy atoms, got one that suits "
            f"{n_atoms}; make it smaller with --shape-scale"
        )
    return n_atoms


def _composition(
    elements: str,
    formula: str | None,
    at_least: str,
    at_most: str,
    charge: int | None,
    formal_charges: bool,
) -> Composition:
    from simgen.composition import Composition

    if formula is not None:
        if at_least or at_most:
            raise InputError("expected --formula or --at-least and --at-most, got both")
        return Composition.from_formula(formula, charge=charge, formal_charges=formal_charges)
    symbols, weights = parse_elements(elements)
    return Composition(
        symbols,
        weights,
        parse_counts(at_least, "--at-least", int),
        parse_counts(at_most, "--at-most", int),
        charge=charge,
        formal_charges=formal_charges,
    )


def _series(reference: str) -> list[Chem.Mol]:
    """Return the reference molecules that have bonds."""
    from simgen.reference import load_reference

    return [m.mol for m in load_reference(reference).molecules if m.mol is not None]


def _scaffold(
    scaffold: Path | None, link: list[Path], core: str | None, grow_at: str | None, reference: str
) -> Scaffold | None:
    from simgen.scaffold import Scaffold, common_core

    given = [
        option
        for option, value in (("--scaffold", scaffold), ("--link", link), ("--core", core))
        if value
    ]
    if len(given) > 1:
        raise InputError(
            f"expected one of --scaffold, --link and --core, got {' and '.join(given)}"
        )
    if not given:
        if grow_at is not None:
            raise InputError("expected --scaffold or --link with --grow-at, got none of them")
        return None
    if core is not None:
        if grow_at is not None:
            raise InputError("a core grows where its series varies; leave --grow-at out")
        return common_core(_series(reference), pattern=None if core == AUTO else core)
    sites = None if grow_at is None else parse_sites(grow_at)
    made = Scaffold.from_files([scaffold] if scaffold is not None else link, sites)
    if link and made.n_fragments < 2:
        raise InputError(f"expected at least two fragments to link, got one in {link[0]}")
    return made


def _shape(
    shape: str | None,
    sizes: tuple[int, int] | None,
    scale: float,
    solid: bool,
    scaffold: Scaffold | None,
    host: Host | None,
) -> AtomPrior | None:
    """Return the prior of a shape; None where the generator is to choose."""
    if shape == CAVITY:
        if host is None:
            raise InputError("expected a --host for the shape of its cavity, got none")
        return host.cavity()
    unscaled = scale == 1.0 and not solid
    if shape is None and (unscaled or scaffold is not None or host is not None):
        if not unscaled:
            raise InputError("expected a --shape with --shape-scale or --shape-solid, got none")
        return None
    return make_prior(shape or Shape.GAUSSIAN, sizes, scale=scale, solid=solid)


def generate(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    count: Annotated[int, typer.Option(min=1, help="Number of attempts.")] = 16,
    heavy_atoms: Annotated[
        str | None,
        typer.Option(
            metavar="K|K1-K2|auto",
            help="Heavy atoms of each molecule, or their range; with a scaffold, of what is added. "
            "auto: what suits the shape, the gap to link or the formula. By default 12; 4 with "
            "--scaffold, auto with --link and --formula, as in the series with --core.",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|cavity",
            help="Shape to give: a name of `simgen priors list`, points, a mesh, molecules, or the "
            "cavity of the host.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    shape_scale: Scale = 1.0,
    shape_solid: Solid = False,
    density: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            help="Heavy atoms for each angstrom (curve), square (surface) or cubic angstrom "
            "(solid), with --heavy-atoms auto.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    scaffold: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Molecule to grow, SDF or XYZ; it stays.",
            rich_help_panel=_SCAFFOLD,
        ),
    ] = None,
    grow_at: Annotated[
        str | None,
        typer.Option(
            metavar="I,J,...|SMARTS",
            help="Atoms to grow at, counted from 0, or the first atom of a pattern.",
            rich_help_panel=_SCAFFOLD,
        ),
    ] = None,
    link: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Fragments to link, at their positions; of one file or one option for each.",
            rich_help_panel=_SCAFFOLD,
        ),
    ] = None,
    core: Annotated[
        str | None,
        typer.Option(
            metavar="auto|SMARTS",
            help="Keep the core that the reference molecules share, and vary what they vary.",
            rich_help_panel=_SCAFFOLD,
        ),
    ] = None,
    host: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Surroundings, XYZ or PDB; their cavity is the shape unless one is given.",
            rich_help_panel=_SCAFFOLD,
        ),
    ] = None,
    host_partners: Annotated[
        bool,
        typer.Option(
            "--host-partners",
            help="Atoms of the host count in environments, and are not only in the way.",
            rich_help_panel=_SCAFFOLD,
        ),
    ] = False,
    reference: Annotated[
        str, typer.Option(help="Reference molecules: a shipped set, or an SDF, SMILES or XYZ file.")
    ] = "organic",
    elements: Annotated[
        str,
        typer.Option(
            metavar="C,N=0.5,...",
            help="Heavy elements that may occur, with weights.",
            rich_help_panel=_COMPOSITION,
        ),
    ] = "C,N,O",
    formula: Annotated[
        str | None,
        typer.Option(
            metavar="C6H6O",
            help="Exact formula, of heavy atoms alone if without H.",
            rich_help_panel=_COMPOSITION,
        ),
    ] = None,
    at_least: Annotated[
        str,
        typer.Option(
            metavar="N=1,...", help="Atoms of an element at least.", rich_help_panel=_COMPOSITION
        ),
    ] = "",
    at_most: Annotated[
        str,
        typer.Option(
            metavar="O=2,...", help="Atoms of an element at most.", rich_help_panel=_COMPOSITION
        ),
    ] = "",
    charge: Annotated[
        int | None,
        typer.Option(
            help="Total charge; by default none, or the scaffold's.", rich_help_panel=_COMPOSITION
        ),
    ] = None,
    formal_charges: Annotated[
        bool,
        typer.Option(
            help="Whether atoms may have charges that cancel.", rich_help_panel=_COMPOSITION
        ),
    ] = True,
    forbid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SMARTS", help="Substructure that is not wanted.", rich_help_panel=_FILTERS
        ),
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME",
            help="Published collection of those: pains, brenk, nih or zinc.",
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    flag_only: Annotated[
        bool,
        typer.Option(
            "--flag-only",
            help="Say what was found, in the report, and reject nothing.",
            rich_help_panel=_FILTERS,
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same molecules; drawn and recorded by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Also write the path of every attempt.")
    ] = False,
    steps: Annotated[int, typer.Option(min=4, help="Noise levels.", rich_help_panel=_METHOD)] = 50,
    particles: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Copies of each molecule that compete; by default 10, from 13 atoms on fewer.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    refinements: Annotated[
        int,
        typer.Option(
            min=0, help="Rounds for samples that do not fit yet.", rich_help_panel=_METHOD
        ),
    ] = 2,
    repairs: Annotated[
        int,
        typer.Option(
            min=0, help="Rounds for atoms in unknown surroundings.", rich_help_panel=_METHOD
        ),
    ] = 24,
    model: Model = "small",
    descriptor: Descriptor = DescriptorName.MACE,
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Attempts at once; by default what fits.", rich_help_panel=_METHOD
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes on a CPU; by default one per core.", rich_help_panel=_METHOD
        ),
    ] = None,
) -> None:
    """Make molecules and write them, with a report of every attempt."""
    if heavy_atoms is None:
        heavy_atoms = _usual_size(scaffold, link, core, formula)
    sizes = None if heavy_atoms == AUTO else parse_sizes(heavy_atoms)
    if density is not None and sizes is not None:
        raise InputError(f"expected --density with --heavy-atoms auto only, got {heavy_atoms}")
    if host is None and host_partners:
        raise InputError("expected a --host with --host-partners, got none")
    if min(count, workers or os.cpu_count() or 1) > 1 and not device.startswith("cuda"):
        worker_context()  # workers import what they need while this process does
    composition = _composition(elements, formula, at_least, at_most, charge, formal_charges)
    grown = _scaffold(scaffold, link or [], core, grow_at, reference)
    from simgen.filters import Filters
    from simgen.host import Host
    from simgen.scaffold import added_atoms

    around = None if host is None else Host.from_file(host, partners=host_partners)
    prior = _shape(shape, sizes, shape_scale, shape_solid, grown, around)
    n_heavy_atoms: tuple[int, int] | int | Literal["auto"] = sizes or "auto"
    if sizes is None and core is not None and formula is None and grown is not None:
        n_heavy_atoms = added_atoms(_series(reference), grown)
    if sizes is None and prior is not None and composition.n_heavy_atoms is None:
        n_heavy_atoms = _fitting_size(prior, density)
    from simgen.devices import default_workers
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    with (
        if_interrupted(f"what is finished is in {out}, and --resume goes on"),
        progress_bar("generating", "molecules") as update,
    ):
        result = generator.generate(
            count,
            n_heavy_atoms,
            prior=prior,
            reference=reference,
            elements=composition,
            scaffold=grown,
            host=around,
            filters=Filters(tuple(forbid or ()), tuple(filter_ or ()), reject=not flag_only),
            descriptor=descriptor.settings,
            n_steps=steps,
            n_particles=particles,
            n_refinements=refinements,
            n_repairs=repairs,
            seed=seed,
            batch_size=batch_size,
            n_workers=workers or default_workers(generator.device),
            out=out,
            resume=resume,
            trajectory=trajectory,
            callback=update,
        )
    best = result.best
    if best is not None and result.config.n_heavy_atoms[0] < result.config.n_heavy_atoms[1]:
        typer.echo(f"best: {best.report.name}, {best.report.smiles}")
    counts = ", ".join(f"{n} {status}" for status, n in result.counts.items())
    typer.echo(f"{len(result.attempts)} attempts with seed {result.seed}: {counts}; see {out}")


def run(
    job: Annotated[Path, typer.Argument(help="Job file: YAML or JSON.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results, in place of the job's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Generate what a job file says: the long options of `simgen generate` as its keys.

    Paths are relative to the folder of the job file.
    """
    arguments = job_arguments(_read_job(job), job)
    if out is not None:
        arguments += ["--out", str(out)]
    if resume:
        arguments.append("--resume")
    application = typer.Typer(add_completion=False)
    application.command()(generate)
    command = typer.main.get_command(application)
    command.main(arguments, prog_name=f"simgen run {job}", standalone_mode=False)


def _read_job(path: Path) -> dict[str, Any]:
    """Read a job file: a mapping of options to values."""
    import yaml

    from simgen.errors import LoadError

    try:
        job = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise LoadError(f"{path} does not exist; check the path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LoadError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(job, dict) or not all(isinstance(key, str) for key in job):
        raise ConfigError(f"expected options and their values in {path}, such as 'count: 16'")
    return job


def job_arguments(job: dict[str, Any], path: Path) -> list[str]:
    """Turn the keys of a job into arguments of ``simgen generate``.

    A list is joined by commas, or repeats an option that may be repeated; numbers by element are
    ``element=number``; true sets a flag.

    Raises
    ------
    ConfigError
        If a key is none of the options, or its value is of no use to it.
    """
    application = typer.Typer(add_completion=False)
    application.command()(generate)
    command = typer.main.get_command(application)
    options = {
        option.removeprefix("--"): (parameter, option)
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    arguments: list[str] = []
    for key, value in job.items():
        name = key.replace("_", "-")
        if name not in options or name == "help":
            known = ", ".join(sorted(set(options) - {"help"}))
            raise ConfigError(f"unknown key {key!r} in {path}; expected one of {known}")
        parameter, option = options[name]
        is_flag = bool(getattr(parameter, "is_flag", False))
        if is_flag:
            if not isinstance(value, bool):
                raise ConfigError(f"expected true or false for {key!r} in {path}, got {value!r}")
            if value:
                arguments.append(option)
            elif parameter.secondary_opts:
                arguments.append(parameter.secondary_opts[0])
            continue
        if isinstance(value, dict):
            value = [f"{symbol}={number}" for symbol, number in value.items()]
        values = value if isinstance(value, list) else [value]
        if any(isinstance(part, (bool, dict, list)) or part is None for part in values):
            raise ConfigError(f"expected text or a number for {key!r} in {path}, got {value!r}")
        texts = [str(part) for part in values]
        if not parameter.multiple:
            texts = [",".join(texts)]
        if name in _FILES:
            texts = [_relative_to(path.parent, text) for text in texts]
        for text in texts:
            arguments += [option, text]
    return arguments


_FILES = ("out", "scaffold", "link", "host", "shape", "reference", "model")
"""Options whose values are files, or may be."""


def _relative_to(folder: Path, text: str) -> str:
    """Path of a file next to the job; names that are no such file stay what they are."""
    beside = folder / text
    return str(beside) if beside.exists() or Path(text).suffix else text
