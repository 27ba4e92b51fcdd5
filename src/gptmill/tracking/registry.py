"""Models in MLflow's registry: a version for each content, the alias for the best of them.

A version refers to bytes that DVC owns (`gptmill.onnx.served` finds them), so that it costs a few
kilobytes whatever the model's size. A model that did not change gets no second version. The alias
`champion` moves when a version's test metric is better than the champion's on the same test data;
what was decided, and why, is left for the report in `.state/registry.json`.
"""

import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.files import read_json, write_json
from gptmill.tracking.address import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

CHAMPION = "champion"
LOADER = "gptmill.onnx.served"
CONTENT, METRIC, VALUE, TESTED_ON = "content", "metric", "value", "tested_on"
EXAMPLES = {"classify": "see you at the park", "generate": "One day"}


def decisions_file() -> Path:
    """What was decided last about each registered model, by its name."""
    return project_root() / ".state" / "registry.json"


def register(client: "MlflowClient", run: str, event: Mapping[str, Any]) -> None:
    """Give a model its version, unless its content has one, and the alias if it is the best."""
    name = event["name"]
    _ensure_model(client, name)
    tags = {key: str(event[key]) for key in (CONTENT, METRIC, VALUE, TESTED_ON)}
    same = client.search_model_versions(f"name = '{name}' AND tags.{CONTENT} = '{event[CONTENT]}'")
    number = int(same[0].version if same else _create_version(client, run, event, tags))
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
    client: "MlflowClient", run: str, event: Mapping[str, Any], tags: dict[str, str]
) -> str:
    from mlflow import pyfunc
    from pandas import DataFrame

    with tempfile.TemporaryDirectory() as scratch:
        reference, model = Path(scratch, "reference"), Path(scratch, event["name"])
        write_json(reference / "reference.json", event["reference"])
        pyfunc.save_model(
            str(model),
            loader_module=LOADER,
            data_path=str(reference),
            signature=_signature(event["reference"]["task"]),
            input_example=DataFrame({"text": [EXAMPLES[event["reference"]["task"]]]}),
            pip_requirements=[f"gptmill=={installed_version('gptmill')}"],
        )
        client.log_artifacts(run, str(model), event["name"])
    source = f"{client.get_run(run).info.artifact_uri}/{event['name']}"
    return client.create_model_version(event["name"], source, run, tags).version


def _leave(name: str, decision: dict[str, Any]) -> None:
    path = decisions_file()
    before = read_json(path) if path.exists() else {}
    write_json(path, {**before, name: decision})


def _signature(task: str) -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string", "text")])
    if task == "classify":
        labels = Schema([ColSpec("string", "label"), ColSpec("double", "probability")])
        return ModelSignature(text, labels)
    options = [
        ParamSpec("max_new_tokens", "long", 64),
        ParamSpec("temperature", "double", 0.0),
        ParamSpec("top_k", "long", 0),
        ParamSpec("top_p", "double", 1.0),
        ParamSpec("seed", "long", 0),
    ]
    return ModelSignature(text, text, ParamSchema(options))
