"""Links of a page to files of the repository that are no pages: tests, benchmarks, sources. The site has no copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

__all__ = ["setup"]


class Outside(SphinxTransform):
    """Replaces a link to a file outside `docs/` by its text, as code where the text is the file's name."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """Do so on one page."""
        docs = Path(self.app.srcdir).resolve()
        here = Path(self.env.doc2path(self.env.docname)).resolve().parent
        for kind in (download_reference, pending_xref, nodes.reference):
            for link in list(self.document.findall(kind)):
                target = str(link.get("reftarget") or link.get("refuri") or "").partition("#")[0]
                if not target or "://" in target:
                    continue
                file = (here / target).resolve()  # of a page, its name may lack the ending
                there = file.exists() or file.with_name(f"{file.name}.md").exists()
                if there and docs not in file.parents and file != docs:
                    text = nodes.inline("", "", *link.children)
                    text["reftitle"] = str(file.relative_to(docs.parent))
                    link.replace_self(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.add_transform(Outside)
    return {"parallel_read_safe": True}
