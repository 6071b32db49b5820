"""The experiments that are shipped with the package, found by name.

This module imports neither torch nor the schema, so that commands can list the experiments at once.
"""

from difflib import get_close_matches
from pathlib import Path

from deim.errors import ConfigError
from deim.files import not_a_file, suggest

CHECKOUT_FOLDER = "configs"
SCHEME = "deim://"
"""Prefix of a base that is always the shipped one, even if a file of that name lies beside the config."""

SIZES = ("nano", "lite", "s", "m", "l", "x")
"""Sizes of the detector, smallest first; each has a file `_base_/model_SIZE.yml` with its recipe."""

SIZE_OR_BLOCK = f"a size ({', '.join(SIZES)}) or a block of options"
"""What the block `model` of a config may be, for messages."""


def shipped_configs_dir() -> Path:
    """Return the folder of the shipped experiments: inside an installed package, or `configs/` of a checkout.

    Raises:
        ConfigError: If neither folder exists.
    """
    package = Path(__file__).resolve().parent.parent
    places = (package / "shipped_configs", package.parent / CHECKOUT_FOLDER)
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"The shipped configs are missing: neither {places[0]} nor {places[1]} exists. "
        f"Install the package again, or run from a complete checkout."
    )


def list_shipped() -> dict[str, str]:
    """Return the first line, a sentence, of each shipped experiment by its name.

    Raises:
        ConfigError: If the shipped configs are missing.
    """
    paths = sorted(shipped_configs_dir().glob("*.yml"))
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in paths}


def find_size(name: object, where: str) -> Path:
    """Find the file of a size: its architecture and its recipe.

    Args:
        name: One of `SIZES` in upper or lower case, also with `deimv2-` before it.
        where: File that names it, or `--set`, for messages.

    Raises:
        ConfigError: If there is no such size.
    """
    size = name.lower().replace("_", "-").removeprefix("deimv2-") if isinstance(name, str) else ""
    if size in SIZES:
        return shipped_configs_dir() / "_base_" / f"model_{size}.yml"
    nearest = (
        get_close_matches(size, SIZES, n=1, cutoff=0.6)
        or [name for name in SIZES if name == size[:1]]  # of small, medium and large
        or get_close_matches(size, SIZES, n=1, cutoff=0.25)  # 'tiny' is near 'nano', '5' near none
    )
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    got = "a block" if isinstance(name, dict) else repr(name)
    raise ConfigError(f"{where}: model: got {got} for the size, needs {SIZE_OR_BLOCK}.{hint}")


def find_base(name: str, config: Path) -> Path:
    """Find a base of a config: a file beside it, or else a shipped one.

    Args:
        name: Path relative to the config, `deimv2_m_1024` or `augment_full` of the shipped configs, or one
            of these after `deim://`, which does not look beside the config.
        config: File that names the base.

    Raises:
        ConfigError: If there is neither.
    """
    beside = config.parent / name
    if _is_file(beside) and not name.startswith(SCHEME):
        return beside
    folder, inside = shipped_configs_dir(), Path(name.removeprefix(SCHEME))
    if inside.parts[:1] == (CHECKOUT_FOLDER,):
        inside = inside.relative_to(CHECKOUT_FOLDER)
    for candidate in (inside, Path(f"{inside}.yml"), Path("_base_", f"{inside}.yml")):
        if not inside.is_absolute() and _is_file(folder / candidate):
            return folder / candidate
    names = [path.stem for path in [*folder.glob("*.yml"), *folder.glob("_base_/*.yml")]]
    nearest = get_close_matches(inside.stem, names, n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else "`deim config list` names the shipped ones."
    looked = "" if name.startswith(SCHEME) else f"{beside} is no file, and "
    raise ConfigError(f"{config}: _base_: got {name!r}, but {looked}no such config is shipped. {hint}")


def _is_file(path: Path) -> bool:
    """Return whether a file can be there, also for a text that no file name may be."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def find_config(name: str | Path) -> Path:
    """Find a file by its path, or a shipped one by its name.

    Args:
        name: Path of a file. If no such file exists: `quickstart`, `quickstart.yml`,
            `configs/quickstart.yml` or `prompts/industrial.yml` of the shipped configs.

    Raises:
        ConfigError: If there is neither.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    inside = path.relative_to(CHECKOUT_FOLDER) if path.parts[:1] == (CHECKOUT_FOLDER,) else path
    for candidate in (inside, Path(f"{inside}.yml")):
        file = shipped_configs_dir() / candidate
        if not path.is_absolute() and file.is_file():
            return file
    raise ConfigError(
        f"{path}: {not_a_file(path, 'config file')}. Name a config file, or a shipped config. "
        f"{suggest(path.stem, list_shipped())}"
    )
