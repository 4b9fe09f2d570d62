"""HTML to text."""

from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document

__all__ = ["WebPageReader"]

_INVISIBLE = ("script", "style", "template", "noscript")
_BLOCKS = (
    *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figure", "footer", "form", "h1"),
    *("h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "title"),
    *("tr", "ul"),
)


class WebPageReader(BaseReader):
    """The visible text of an HTML file, title first, a line per block.

    LlamaIndex's own HTMLTagReader reads one kind of tag only, in UTF-8 only, runs paragraphs together and takes scripts
    for text. Here the encoding is what the file says it is.
    """

    def load_data(self, file: Path, extra_info: dict[str, Any] | None = None) -> list[Document]:
        """One document."""
        soup = BeautifulSoup(Path(file).read_bytes(), "html.parser")
        for tag in soup(list(_INVISIBLE)):
            tag.decompose()
        for tag in soup(list(_BLOCKS)):
            tag.insert_before("\n")
            tag.insert_after("\n")
        for cell in soup(["td", "th"]):
            cell.insert_after(" ")
        lines = (" ".join(line.split()) for line in soup.get_text().splitlines())
        return [Document(text="\n".join(line for line in lines if line), metadata=extra_info or {})]
