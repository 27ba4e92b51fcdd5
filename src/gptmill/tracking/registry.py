"""Models in MLflow's registry: a version for each content, the alias for the best of them.

A version refers to bytes that DVC owns (`gptmill.runtime.mlflow_pyfunc` finds them by their
hashes), so it costs a few kilobytes whatever the model's size. A model that did not change gets no
second version. The alias `champion` moves when a version's test metric is better than the
champion's on the same test data; what was decided, and why, is left for the report in
`.state/registry.json`.

The version's tags hold all that its few files are made from; where those are gone (`mlflow gc`, a
lost folder) `repair` writes them again.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from gptmill.dvc import find_files
from gptmill.errors import UserError
from gptmill.files import read_json, write_json
from gptmill.sampling_options import declarations
from gptmill.shapes import parse_json_as, read_json_as
from gptmill.tracking.address import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

CHAMPION = "champion"
LOADER = "gptmill.runtime.mlflow_pyfunc"
CONTENT, METRIC, VALUE, TESTED_ON = "content", "metric", "value", "tested_on"
REFERENCE = "reference"
DATA = "data/reference"  # where MLflow puts what `data_path` names


class Reference(BaseModel):
    """What finds a model's bytes: its `task`, `path` in the project, MD5 of its files by name."""

    task: Literal["classify", "generate"]
    path: str
    files: dict[str, str]


EXAMPLES = {"classify": "see you at the park", "generate": "One day"}


def decisions_file() -> Path:
    """What was decided last about each registered model, by its name."""
    return project_root() / ".state" / "registry.json"


def register(client: "MlflowClient", run: str, event: Mapping[str, Any]) -> None:
    """Give a model its version, unless its content has one, and the alias if it is the best."""
    name = event["name"]
    _ensure_model(client, name)
    tags = {key: str(event[key]) for key in (CONTENT, METRIC, VALUE, TESTED_ON)}
    reference = {key: event["reference"][key] for key in ("task", "path", "files")}
    same = client.search_model_versions(f"name = '{name}' AND tags.{CONTENT} = '{event[CONTENT]}'")
    if same:
        number = int(same[0].version)
        client.set_model_version_tag(name, str(number), REFERENCE, json.dumps(reference))
        _restore(client, same[0], reference)
    else:
        number = int(_create_version(client, run, name, reference, tags))
    champion = _champion(client, name)
    moves, why = decide(tags, champion.tags if champion else None, event["higher_is_better"])
    if champion and int(champion.version) == number:
        moves, why = False, "it is the champion already"
    if moves:
        client.set_registered_model_alias(name, CHAMPION, str(number))
    holder = number if moves or champion is None else int(champion.version)
    client.set_model_version_tag(name, str(number), "decision", why)
    _leave(name, {"version": number, "champion": holder, "why": why, **tags})


def decide(
    candidate: Mapping[str, str], champion: Mapping[str, str] | None, higher_is_better: bool
) -> tuple[bool, str]:
    """Whether a version takes the alias from the champion's, and why, from the tags of both."""
    metric, value = candidate[METRIC], float(candidate[VALUE])
    if champion is None or VALUE not in champion:
        return True, f"the first version: {metric} {value:.4g}"
    before = float(champion[VALUE])
    if (metric, candidate[TESTED_ON]) != (champion.get(METRIC), champion.get(TESTED_ON)):
        return False, "it was tested on other data than the champion: the figures do not compare"
    better = value > before if higher_is_better else value < before
    relation = "better than" if better else "not better than"
    return better, f"{metric} {value:.4g} is {relation} the champion's {before:.4g}"


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        try:
            client.create_registered_model(name)
        except MlflowException:  # another process was quicker
            client.get_registered_model(name)


def _champion(client: "MlflowClient", name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return None


def _create_version(
    client: "MlflowClient", run: str, name: str, reference: dict[str, Any], tags: dict[str, str]
) -> str:
    """A logged model of the run, which outlives it, and a version of the registered model."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    experiment = client.get_run(run).info.experiment_id
    logged = client.create_logged_model(experiment, name, source_run_id=run, tags=tags)
    with _written(name, reference, logged.model_id) as folder:
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
    tags = {**tags, REFERENCE: json.dumps(reference)}
    number = client.create_model_version(
        name, logged.artifact_location, run, tags, model_id=logged.model_id
    ).version
    # A server does this by itself; from here the model's page leads to the version.
    known = json.dumps([{"name": name, "version": number}])
    client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: known})
    return number


@contextmanager
def _written(name: str, reference: dict[str, Any], logged: str | None) -> Iterator[Path]:
    """The files of a version, as MLflow loads them."""
    from mlflow import pyfunc
    from mlflow.models import Model
    from pandas import DataFrame

    with tempfile.TemporaryDirectory() as scratch:
        data, folder = Path(scratch, "reference"), Path(scratch, name)
        write_json(data / "reference.json", reference)
        pyfunc.save_model(
            str(folder),
            mlflow_model=Model(model_id=logged),
            loader_module=LOADER,
            data_path=str(data),
            signature=_signature(reference["task"]),
            input_example=DataFrame({"text": [EXAMPLES[reference["task"]]]}),
            pip_requirements=[f"gptmill=={installed_version('gptmill')}"],
        )
        yield folder


def repair(client: "MlflowClient") -> list[str]:
    """Make every champion loadable again, as far as its bytes are there.

    Returns:
        What was repaired, and what cannot be loaded and why, a line each.
    """
    found = []
    for model in client.search_registered_models():
        version = _champion(client, model.name)
        if version is None or CONTENT not in version.tags:
            continue  # not ours
        what = f"{model.name} version {version.version} (champion)"
        try:
            reference = _reference(client, version)
            if _restore(client, version, reference):
                found.append(f"{what}: its files were gone and are written again")
            find_files(reference["path"], reference["files"], project_root())
        except UserError as error:
            found.append(f"{what} cannot be loaded: {error}")
    return found


def _reference(client: "MlflowClient", version: Any) -> dict[str, Any]:
    """What a version refers to, from its tags; earlier gptmill wrote it to its files alone."""
    if REFERENCE in version.tags:
        return parse_json_as(version.tags[REFERENCE], Reference, "its tag").model_dump()
    files = _files(client, version)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = Path(files.download_artifacts(f"{DATA}/reference.json", scratch))
            return read_json_as(path, Reference).model_dump()
        except UserError:
            raise
        except Exception:  # each kind of store has errors of its own
            raise UserError(
                "its files are gone, and it is of a gptmill that kept no copy: `dvc repro --force "
                "export_onnx` makes a version that can be loaded"
            ) from None


def _restore(client: "MlflowClient", version: Any, reference: dict[str, Any]) -> bool:
    """Write a version's files again where they are gone; whether they were."""
    files = _files(client, version)
    try:
        if any(Path(entry.path).name == "MLmodel" for entry in files.list_artifacts()):
            return False
    except Exception:  # as above: a folder that is not there
        pass
    with _written(version.name, reference, version.model_id) as folder:
        files.log_artifacts(str(folder))
    return True


def _files(client: "MlflowClient", version: Any) -> Any:
    """The place of a version's files, in whatever store."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    address = client.get_model_version_download_uri(version.name, version.version)
    return get_artifact_repository(address, tracking_uri=client.tracking_uri)


def _leave(name: str, decision: dict[str, Any]) -> None:
    path = decisions_file()
    before = read_json(path, dict) if path.exists() else {}
    write_json(path, {**before, name: decision})


def _signature(task: str) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string", "text")])
    if task == "classify":
        wanted = ParamSchema([ParamSpec("probability", "boolean", False)])
        return ModelSignature(text, Schema([ColSpec("string", "label")]), wanted)
    types = {int: "long", float: "double"}
    options = [ParamSpec(one.name, types[one.kind], one.default) for one in declarations()]
    return ModelSignature(text, text, ParamSchema(options))
