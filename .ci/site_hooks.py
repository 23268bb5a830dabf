"""Hook of mkdocs: puts into the site what its theme would load from another host.

The site is then whole without a network, also from the disk: mermaid draws the diagrams, and
iframe-worker searches where a browser allows no workers. Both are fetched once per environment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

from colorgan.demo.npm import Package, fetch, files_of

# The major versions that mkdocs-material was written for.
MERMAID = Package(
    name="mermaid",
    version="11.17.2",
    sha512="V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4hh47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg==",
    num_bytes=17_796_365,
)
IFRAME_WORKER = Package(
    name="iframe-worker",
    version="1.0.4",
    sha512="roeaaI+Lg1LJNfgpCjoRe/+WzEjy9+Z08LoEvu85MCPbBjwm+qXz8Ag5U05lHa6V1CysZyGzE0SOkAtSUA5q7Q==",
    num_bytes=8_592,
)
DIAGRAMS = "assets/javascripts/mermaid.min.js"
VENDORED = {
    DIAGRAMS: (MERMAID, "dist/mermaid.min.js"),
    # mkdocs.yml names it as a polyfill, in the place of the theme's address.
    "assets/javascripts/iframe-worker.js": (IFRAME_WORKER, "shim/index.js"),
}


def on_files(files: Files, config: Any) -> Files:
    """Add the scripts to the site's files."""
    for in_site, (package, name) in VENDORED.items():
        kept = Path(sys.prefix) / f"{package.name}-{package.version}.js"
        if not kept.exists():
            script = files_of(package, fetch(package), [name], package.url)[name]
            # Renamed when whole: a build that is stopped leaves no half of it.
            partial = kept.with_suffix(".partial")
            partial.write_bytes(script)
            partial.replace(kept)
        files.append(File.generated(config, in_site, abs_src_path=str(kept)))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Load mermaid in the pages that have a diagram alone: it has 3.6 MB."""
    if 'class="mermaid"' not in output:
        return output
    # In the head: the theme fetches its own where there is none by then.
    script = f'<script src="{get_relative_url(DIAGRAMS, page.url)}"></script>'
    return output.replace("</head>", f"{script}</head>", 1)
