"""mkdocs hooks: add figures, the reference, and the pages at the project root to the site."""

import re
from pathlib import Path

import drawings
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: Pages at the project root, by their path in the site.
AT_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
GENERATED = {"cli.md": reference.commands}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every file in docs/adr to the navigation, so that a new decision needs no entry."""
    folder = Path(config.docs_dir) / "adr"
    listed = [{_title(file): f"adr/{file.name}"} for file in sorted(folder.glob("*.md"))]
    config.nav = [{"Decisions": listed} if entry == {"Decisions": "adr"} else entry for entry in config.nav or []]
    return config


def _title(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for place, name in AT_THE_ROOT.items():
        files.append(File.generated(config, place, content=(root / name).read_text(encoding="utf-8")))
    for place, draw in drawings.DRAWINGS.items():
        files.append(File.generated(config, place, content=draw()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri in AT_THE_ROOT:
        return re.sub(r"\]\((?:docs/)", "](", markdown)  # links relative to the root become relative to docs/
    generate = GENERATED.get(page.file.src_uri)
    return f"{markdown}\n\n{generate()}" if generate else markdown
