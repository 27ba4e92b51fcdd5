"""The packages that results depend on: what versions.yaml says, and what is installed."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gptmill.errors import UserError
from gptmill.files import atomic_file
from gptmill.params import YAML, read_yaml

VERSIONS_FILE = Path("versions.yaml")


@dataclass(frozen=True)
class Package:
    """`recorded` is the version in versions.yaml, `installed` this Python's ('' if absent)."""

    name: str
    recorded: str
    installed: str


def packages(file: Path = VERSIONS_FILE) -> list[Package]:
    """Every package of versions.yaml, in its order.

    Raises:
        UserError: the file is missing or malformed.
    """
    recorded = read_yaml(file)
    if wrong := [name for name, value in recorded.items() if not isinstance(value, str)]:
        raise UserError(
            f"{file}: {wrong[0]}: {recorded[wrong[0]]!r} is not a quoted version: "
            "write it anew with `gptmill versions --accept`"
        )
    return [Package(name, value, installed(name)) for name, value in recorded.items()]


def installed(name: str) -> str:
    """A package's public version ('' if absent): PyTorch's `2.13.0+cpu` is a build of 2.13.0."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return ""


def require_recorded(file: Path = VERSIONS_FILE) -> None:
    """Hold the installed packages against versions.yaml.

    Raises:
        UserError: they differ; a result would be filed under versions it was not made with.
    """
    differing = [
        f"  {package.name} {package.installed or 'is not installed'}, recorded: {package.recorded}"
        for package in packages(file)
        if package.installed != package.recorded
    ]
    if differing:
        raise UserError(
            f"the installed packages are not those of {file.name}, which results depend on:\n"
            + "\n".join(differing)
            + "\ninstall the locked ones with `make -B setup`, or accept the installed ones with "
            "`gptmill versions --accept`, after which `dvc status` shows what will rerun"
        )


def accept(file: Path = VERSIONS_FILE) -> list[Package]:
    """Write the installed versions into versions.yaml, comments kept.

    Returns:
        the packages whose version changed, as they were.

    Raises:
        UserError: the file is missing or malformed, or a package of it is not installed.
    """
    known = packages(file)
    if absent := [package.name for package in known if not package.installed]:
        raise UserError(f"not installed: {', '.join(absent)}; run `make setup` first")
    yaml = YAML()
    document = yaml.load(file.read_text(encoding="utf-8"))
    document |= {package.name: package.installed for package in known}
    with atomic_file(file) as beside, beside.open("w", encoding="utf-8", newline="\n") as target:
        yaml.dump(document, target)
    return [package for package in known if package.installed != package.recorded]
