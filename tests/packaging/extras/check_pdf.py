"""`bge search` reads a PDF file."""

import subprocess
import sys
import tempfile
from pathlib import Path

STREAM = b"BT /F1 24 Tf 72 700 Td (The heart pumps blood through the body.) Tj ET"
OBJECTS = (
    b"<< /Type /Catalog /Pages 2 0 R >>",
    b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
    b"<< /Length %d >>\nstream\n%s\nendstream" % (len(STREAM), STREAM),
    b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
)


def one_page() -> bytes:
    """Return a PDF file with one line of text."""
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(OBJECTS, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(OBJECTS) + 1
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, trailer)


with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "anatomy.pdf").write_bytes(one_page())
    command = [
        Path(sys.executable).parent / "bge",
        "search",
        folder,
        "what pumps blood?",
        "--model",
        sys.argv[1],
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "anatomy.pdf" in found.stdout, found.stdout
