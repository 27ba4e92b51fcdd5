"""What DVC keeps in files: stages in dvc.yaml, hashes in dvc.lock, bytes in its cache."""

import configparser
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.params import PARAMS_FILE, read_yaml

ANSWERS = ("data/responses", "data/judgements")
OWN = "own"  # a user's own text and model, which git ignores


def stages(root: Path = Path()) -> dict[str, Any]:
    """The stages of a project's dvc.yaml by name, `foreach` not unfolded.

    Raises:
        UserError: it is missing or malformed.
    """
    return read_yaml(root / "dvc.yaml").get("stages", {})


def definition(stage: str, root: Path = Path()) -> dict[str, Any]:
    """What dvc.yaml says of a stage; of one of several (`download@classification`), what all have.

    Raises:
        UserError: there is no such stage; the message names those there are.
    """
    known = stages(root)
    name = stage.split("@")[0]
    if name not in known:
        raise UserError(f"no stage '{stage}' in dvc.yaml; there are: {', '.join(known)}")
    return known[name].get("do", known[name])


def dependencies(stage: str, root: Path = Path()) -> list[str]:
    """The paths that a stage depends on; none where there is no such stage, nor a dvc.yaml."""
    try:
        return definition(stage, root).get("deps", [])
    except UserError:
        return []


def tracked(stage: str) -> tuple[list[Path], dict[Path, list[str] | None]]:
    """What dvc.lock will name for a stage: its deps, and dotted names by file of parameters.

    `None` for all of a file: where it is tracked as a whole, and for params.yaml where there is no
    pipeline file or it does not know the stage, as in a trial of a study.
    """
    try:
        found = definition(stage)
    except UserError:
        return [], {PARAMS_FILE: None}
    item = os.environ.get("DVC_STAGE", "").partition("@")[2]
    names_by_file: dict[Path, list[str] | None] = {}
    for entry in found.get("params", []):
        of_files = entry if isinstance(entry, dict) else {PARAMS_FILE.name: [entry]}
        for file, names in of_files.items():
            known = names_by_file.setdefault(Path(file), [])
            names_by_file[Path(file)] = (
                None if known is None or not names else known + [_filled(n, item) for n in names]
            )
    return [Path(_filled(str(dep), item)) for dep in found.get("deps", [])], names_by_file


def _filled(text: str, item: str) -> str:
    """`download.${item}` for the item that DVC runs; for one run by hand, all of `download`."""
    return text.replace("${item}", item) if item else text.partition(".${")[0]


def locked_outputs(lock: Path) -> dict[str, str]:
    """DVC's hash of every output in a dvc.lock; empty where there is none."""
    if not lock.exists():
        return {}
    stages = read_yaml(lock).get("stages", {}).values()
    outputs = [output for stage in stages for output in stage.get("outs", [])]
    return {output["path"]: output.get("md5", "") for output in outputs}


def locked_data(lock: Path) -> dict[str, str]:
    """DVC's hash of everything under data/ that is no model's answer, from a dvc.lock."""
    return {
        path: digest
        for path, digest in locked_outputs(lock).items()
        if path.startswith("data/") and not path.startswith(ANSWERS)
    }


def md5(path: Path) -> str:
    """The hash by which DVC's cache knows a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def find_files(path: str, files: Mapping[str, str], *roots: Path) -> dict[str, Path]:
    """Where each file of an output is whose content is known, by its name in the output.

    Args:
        path: of the output in a project.
        files: MD5 by name.
        roots: projects to look in: in the output as it stands, then in DVC's cache.

    Raises:
        UserError: a file is in neither; the message has its name and hash.
    """
    found = {}
    for name, digest in files.items():
        published = [file for root in roots if (file := root / path / name).is_file()]
        cached = [cache / digest[:2] / digest[2:] for root in roots for cache in caches(root)]
        good = (file for file in [*published, *cached] if file.is_file() and md5(file) == digest)
        place = next(good, None)
        if place is None:
            places = ", ".join(map(str, roots))
            raise UserError(
                f"{path}/{name} of this version (MD5 {digest}) is neither under {places} nor in "
                "its DVC cache: check out the commit it was made from and run `dvc checkout`, or "
                "`dvc pull`; where the project is elsewhere, name it in GPTMILL_PROJECT"
            )
        found[name] = place
    return found


def caches(root: Path) -> list[Path]:
    """The folders in which DVC keeps a project's files by MD5, as configured or by default."""
    folders = [root / ".dvc/cache"]
    for name in ("config", "config.local"):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read(root / ".dvc" / name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # dvc itself will say so
        if folder := parser.get("cache", "dir", fallback=""):
            folders.append(root / ".dvc" / folder)
    return [folder / "files/md5" for folder in folders]


def require_own_files() -> None:
    """Refuse to run in a queued or temporary copy of the project without the user's own files.

    DVC copies what git tracks and what stages made; with another hash of `own/` a stage would run
    again on other data than in the workspace, or for nothing.

    Raises:
        UserError: the stage depends on files of the original's `own/` that are not here.
    """
    original, here = Path(os.environ.get("DVC_ROOT", ".")).resolve(), Path.cwd()
    if original == here:
        return
    watched = [dep for dep in dependencies(os.environ.get("DVC_STAGE", "")) if _is_own(dep)]
    files = [p.relative_to(original) for dep in watched for p in (original / dep).rglob("*")]
    missing = [name for name in files if not (here / name).exists()]
    if missing:
        raise UserError(
            f"{missing[0]} is not in this queued or temporary run ({len(missing)} of the "
            "project's own files that git ignores are not): name each to DVC, `dvc exp run "
            f"--queue --copy-paths {missing[0].as_posix()} …`, or let `gptmill sweep` queue it"
        )


def _is_own(dep: str) -> bool:
    return Path(dep).parts[:1] == (OWN,)
