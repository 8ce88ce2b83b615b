"""What mkdocs calls while `make docs` builds the site: generated parts of the reference, and the list of links to other sites.

A page has `<!-- generated: NAME -->` where a part goes in; NAME is one of `PARTS`. Links within the site are checked by mkdocs itself
(`validation` in mkdocs.yml, with --strict). Links to other sites are not fetched: they are written to external-links.txt beside the site.
"""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import commands
import http_paths
import manifest_fields

PARTS = {"commands": commands.render, "http": http_paths.render, "manifest": manifest_fields.render}
"""By name, what makes the Markdown that takes the place of the comment."""

_PLACE = re.compile(r"^<!-- generated: (\S+) -->$", re.MULTILINE)
_EXTERNAL = re.compile(r'href="(https?://[^"]+)"')
_external: dict[str, set[str]] = {}


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _PLACE.sub(lambda found: PARTS[found[1]](), markdown)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    for link in _EXTERNAL.findall(html):
        _external.setdefault(link, set()).add(page.file.src_uri)


def on_post_build(config: Any) -> None:
    listed = [f"{link}  ({', '.join(sorted(pages))})" for link, pages in sorted(_external.items())]
    out = Path(config["site_dir"]).parent / "external-links.txt"
    out.write_text("\n".join(listed) + "\n")
    print(f"links to other sites, not fetched: {len(listed)}, listed in {out}")
