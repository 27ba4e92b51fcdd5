"""`gptmill export`, `params`, `profile`, `doctor`, `track`, `plots`: the project and its tools."""

import argparse
import sys
from pathlib import Path
from typing import Any

from gptmill.cli.command import add_command
from gptmill.errors import UserError


def add_export(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "export", export, "Write a model folder in another format, such as GGUF."
    )
    parser.add_argument("format", choices=["gguf"], help="gguf: for llama.cpp and Ollama")
    parser.add_argument("model", type=Path, help="language-model folder")
    parser.add_argument("--output", type=Path, help="file to write (MODEL-TYPE.gguf)")
    parser.add_argument("--type", choices=["f32", "f16", "q8_0"], default="f16", help="weights")


def export(options: argparse.Namespace) -> None:
    """Write the GGUF file, beside the folder by default, and a Modelfile beside it."""
    from gptmill.export.gguf import export_gguf

    output = options.output or Path(f"{options.model}-{options.type}.gguf")
    modelfile = export_gguf(options.model, output, options.type)
    print(f"{output} ({output.stat().st_size / 2**20:.1f} MiB)")
    print(f"{modelfile} (ollama create NAME -f {modelfile})")


def add_params(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "params", params, "Explain every parameter: its value, type and meaning."
    )
    parser.add_argument("filter", nargs="?", default="", help="show names that contain this")


def params(options: argparse.Namespace) -> None:
    """Print the typed tree, with the values of params.yaml."""
    from gptmill.meanings import describe
    from gptmill.params import load

    values = load().model_dump()
    rows = []
    for name, kind, meaning in describe():
        if options.filter in name:
            rows.append((name, _value(values, name), kind, meaning))
    if not rows:
        raise UserError(f"no parameter's name contains '{options.filter}'")
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, value, kind, meaning in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {meaning} ({kind})")


def _value(values: dict[str, Any], name: str) -> str:
    """What a leaf is set to; '-' for a leaf of a source that is not the chosen one."""
    value: Any = values
    for part in name.split("."):
        key, _, source = part.removesuffix("]").partition("[")
        value = value.get(key) if isinstance(value, dict) else None
        if source and (not isinstance(value, dict) or value["source"] != source):
            return "-"
    return "-" if value is None else str(value) or "''"


def add_profile(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "profile",
        profile,
        "Write a profile into params.yaml, comments kept. Without a name, list them.",
    )
    parser.add_argument("name", nargs="?", help="profiles/NAME.yaml")


def profile(options: argparse.Namespace) -> None:
    """Apply a profile, or list them with their first comment line."""
    from gptmill.params import PARAMS_FILE
    from gptmill.profiles import apply_profile, list_profiles

    if options.name is None:
        for name, title in list_profiles():
            print(f"{name:14} {title}")
        return
    apply_profile(options.name)
    print(f"{PARAMS_FILE} now holds profile {options.name}; run `make repro` or `dvc repro`")


def add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "doctor", doctor, "Check disk, memory, device, Ollama, MLflow and mirror."
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="remove instead what kills left half written and the checkpoints of unfinished runs",
    )


def doctor(options: argparse.Namespace) -> None:
    """Print one line per check; exit with 1 if a needed one fails."""
    from gptmill.doctor import clean, examine

    if options.clean:
        lines = list(clean())
        print("\n".join(lines) or "nothing to clean")
        return
    failed = False
    for check in examine():
        print(f"{check.state:5} {check.name:10} {check.finding}")
        failed |= check.state == "FAIL"
    if failed:
        sys.exit(1)


def add_track(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "track", track, "MLflow: open the UI, or send what waits.")
    parser.add_argument(
        "action",
        choices=["ui", "replay"],
        help="ui: serve MLflow on loopback; replay: send journals that an unreachable server "
        "missed, and write again what the registry's champions need",
    )
    parser.add_argument("--port", type=int, default=5000, help="port of the UI")


def track(options: argparse.Namespace) -> None:
    """Serve the UI, or replay the journal and repair the registry's champions."""
    from gptmill import tracking

    if options.action == "ui":
        tracking.serve_ui(options.port)
        return
    print(f"{tracking.replay()} runs sent")
    try:
        for line in tracking.repair():
            print(line)
    except ConnectionError as error:
        raise UserError(str(error)) from None


def add_plots(commands: argparse._SubParsersAction) -> None:
    add_command(
        commands,
        "plots",
        plots,
        "Let `dvc plots show` and `diff` draw without a network. `make setup` has done it.",
    )


def plots(options: argparse.Namespace) -> None:
    """Write the template with Vega in it and set DVC to it."""
    from gptmill.report.plots import write_plots_template

    print(f"{write_plots_template(Path())}: what `dvc plots show` writes now holds all it needs")
