"""The experiments that are shipped with the package, found by name.

This module imports neither torch nor the schema, so that commands can list the experiments at once.
"""

from pathlib import Path

from deim.errors import ConfigError
from deim.files import not_a_file, suggest

CHECKOUT_FOLDER = "configs"


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
