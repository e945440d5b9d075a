"""What mkdocs builds beside the files of docs/: pictures, the reference, and the pages that lie at the root."""

import re
from pathlib import Path

import drawings
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: Pages at the root of the project, by their place in the site.
AT_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
MADE = {"configuration.md": reference.configuration, "cli.md": reference.commands}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every decision in docs/adr, so that a new one needs no entry."""
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
        return re.sub(r"\]\((?:docs/)", "](", markdown)  # links that hold at the root, seen from docs/
    made = MADE.get(page.file.src_uri)
    return f"{markdown}\n\n{made()}" if made else markdown
