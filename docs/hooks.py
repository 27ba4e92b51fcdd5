"""What the pages say of code and numbers is looked up while the site is built, never typed.

`[[path]]`, `[[path:Class.method]]`, `[[path::test_name]]`: a link to the line, on a page of that
    source within the site; a path or name that does not exist stops the build.
`{{finding NAME}}`: the picture and caption of a finding of the stage `study`.
`{{see NAME}}`: a link to where that picture stands.
`{{run STAGE}}`: curves and diagnosis of a training stage.
`{{metric STAGE NAME}}`: a number of metrics/STAGE.json.

What the pipeline has not made yet is said to be absent.
"""

import ast
import html
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from gptmill.files import read_json
from gptmill.report.charts import Chart, figure
from gptmill.report.learning import training_runs
from gptmill.report.read import Results

CODE = "code/"
REFERENCE = re.compile(r"\[\[([\w./-]+?\w)(?:::?([A-Za-z_][\w.]*))?\]\]")
DIRECTIVE = re.compile(r"\{\{(finding|see|run|metric) ([\w/]+)(?: ([\w/.-]+))?\}\}")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".html": "html", ".json": "json"}
log = logging.getLogger("mkdocs.gptmill")


def root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that the navigation does not name follow it."""
    named = str(config.nav)
    others = [path.name for path in sorted(Path(config.docs_dir).glob("*.md"))]
    config.nav.append({"Reference": [name for name in others if name not in named]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every source that is referred to, and the study's pictures."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    sources = {path for page in pages for path, _ in REFERENCE.findall(page.content_string)}
    for path in sorted(sources):
        content = source_page(root(config) / path, path)
        files.append(File.generated(config, f"{CODE}{path}.md", content=content))
    for picture in sorted((root(config) / "plots/study").glob("*.png")):
        uri = f"study/{picture.name}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace references and directives, but not in sources shown as they are."""
    if page.file.src_uri.startswith(CODE):
        return markdown
    here = root(config)
    markdown = REFERENCE.sub(lambda found: code_link(here, page, *found.groups()), markdown)
    return DIRECTIVE.sub(lambda found: directive(here, page, files, *found.groups()), markdown)


def source_page(path: Path, name: str) -> str:
    """A page of one source with numbered lines that links can name."""
    if not path.is_file():
        raise PluginError(f"docs refer to {name}, which does not exist")
    text = path.read_text(encoding="utf-8").rstrip("\n")
    language = LANGUAGES.get(path.suffix, "text")
    fence = "~" * 12
    title = f"---\nhide: [toc]\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
    return f'{title}{fence} {{.{language} linenums="1"}}\n{text}\n{fence}\n'


def line_of(path: Path, symbol: str) -> int:
    """Where a function, class, method or constant is defined.

    Raises:
        PluginError: the file has no such name.
    """
    body: list[ast.stmt] = parsed(path).body
    line = 0
    for name in symbol.split("."):
        node = next((node for node in body if name in names(node)), None)
        if node is None:
            raise PluginError(f"docs refer to {symbol} in {path}, which has no {name}")
        line, body = node.lineno, getattr(node, "body", [])
    return line


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def code_link(here: Path, page: Page, path: str, symbol: str | None) -> str:
    line = line_of(here / path, symbol) if symbol else 1
    address = get_relative_url(f"{CODE}{path}.html#__codelineno-0-{line}", page.url)
    shown = f"{Path(path).name}:{symbol}" if symbol else path.removeprefix("src/gptmill/")
    return f'<a href="{address}" title="{path}, line {line}"><code>{shown}</code></a>'


def directive(
    here: Path, page: Page, files: Files, kind: str, name: str, detail: str | None
) -> str:
    if kind == "run":
        return run(here, name)
    if kind == "metric":
        return metric(here, name, detail or "")
    found = finding(here, name)
    if not found:
        return absent(f"plots/study/{name}.png")
    if kind == "see":
        target = next(f.url for f in files if f.src_uri.startswith(f"course/{found['chapter']}-"))
        address = get_relative_url(f"{target}#{name}", page.url)
        return f'<a href="{address}">{html.escape(found["title"])}</a>'
    image = get_relative_url(f"study/{name}.png", page.url)
    title, caption = html.escape(found["title"]), html.escape(found["caption"])
    return (
        f'<figure id="{name}" class="finding"><img src="{image}" alt="{title}">'
        f"<figcaption><strong>{title}.</strong> {caption}.</figcaption></figure>"
    )


def finding(here: Path, name: str) -> dict[str, Any] | None:
    """What the study found under that name; `None` if it has not run.

    Raises:
        PluginError: it has run and has no such finding.
    """
    path = here / "plots/study/findings.json"
    if not path.exists():
        return None
    for entry in read_json(path):
        if entry["name"] == name:
            return entry
    raise PluginError(f"docs show the finding {name}, which the study does not have")


def run(here: Path, stage: str) -> str:
    """Curves of a training stage as the report draws them."""
    found = next((r for r in training_runs(Results(here)) if r.stage == stage), None)
    if found is None:
        raise PluginError(f"docs show the run of {stage}, which is no training stage")
    if found.diagnosis is None:
        return absent(f"plots/{stage}/training.csv")
    charts = "".join(chart(c) for c in found.charts if c.title in ("Loss", "Accuracy"))
    verdict = f"<strong>{found.diagnosis.verdict}</strong>: {html.escape(found.diagnosis.reason)}"
    return f'<div class="charts">{charts}</div>\n\n<p>Diagnosis: {verdict}.</p>'


def chart(drawn: Chart) -> str:
    keys = "".join(
        f'<span class="key {color}">{html.escape(name)}</span>' for color, name in drawn.legend
    )
    return f"<figure><figcaption>{drawn.title} {keys}</figcaption>{drawn.svg}</figure>"


def metric(here: Path, stage: str, name: str) -> str:
    value = Results(here).metric(stage, name)
    return absent(f"metrics/{stage}.json") if value is None else figure(value)


def absent(what: str) -> str:
    log.info("%s is not there: the pipeline has not made it", what)
    return f"<em>({what} is not there yet: run <code>make repro</code>)</em>"
