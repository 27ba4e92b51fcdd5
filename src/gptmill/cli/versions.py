"""`gptmill versions`: the packages that results depend on."""

import argparse

from gptmill.cli.command import add_command


def add_versions(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "versions",
        versions,
        "Show the packages that results depend on: version recorded, version installed.",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="write the installed versions into versions.yaml; `dvc status` shows what will rerun",
    )


def versions(options: argparse.Namespace) -> None:
    """Print one line per package, or accept what is installed and print what changed."""
    from gptmill.versions import VERSIONS_FILE, accept, packages

    if options.accept:
        for package in accept():
            print(f"{package.name}: {package.recorded or 'new'} -> {package.installed}")
        print(f"{VERSIONS_FILE} holds the installed versions")
        return
    for package in packages():
        same = package.installed == package.recorded
        note = "" if same else f"  installed: {package.installed or 'nothing'}"
        print(f"{package.name:14} {package.recorded}{note}")
