"""`python -m docs`: write the generated pages and pictures."""

from docs import graphs, reference
from docs.pages import ROOT
from pipeline.core import files

if __name__ == "__main__":
    for path, text in (reference.pages() | graphs.files()).items():
        files.write_text(ROOT / path, text)
