"""Folders of documents, written here: text, Markdown, HTML and PDF."""

from pathlib import Path

GOATS = "The night boat to Corran carries no more than twelve goats, and each of them has a ticket of its own."
BELLS = "The school bell of Tarrow was cast from two sunken anchors and rings a little flat before rain."
BREAD = "Bread in the upper town of Mosskell is sold by the length of an arm, which is the baker's own."
BOXES = "Every archive box of the harbour office is tied with green string, the secret ones with red."
LAMPS = "The lighthouse keeper trims four lamps at dusk and drinks his cocoa when the last one burns."


def write_documents(folder: Path) -> Path:
    """A file of every kind that is read, and some that are not."""
    (folder / "sub").mkdir(parents=True)
    (folder / "boats.md").write_text(f"# Boats\n\n{GOATS}\n")
    (folder / "sub" / "bells.txt").write_text(BELLS)
    (folder / "bread.html").write_text(
        "<html><head><title>Bread</title><style>p { color: red }</style></head>"
        f"<body><script>var hidden = 1;</script><p>{BREAD}</p><p>So it is.</p></body></html>"
    )
    (folder / "archive.pdf").write_bytes(pdf(BOXES, LAMPS))
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "latin.txt").write_bytes("Überfahrt".encode("latin-1"))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (folder / ".hidden.txt").write_text("nobody reads this")
    return folder


def pdf(*pages: str) -> bytes:
    """The smallest PDF with a line of text on each page."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return data + f"{trailer}startxref\n{len(data)}\n%%EOF\n".encode()
