"""Read delimited text as a table of text: each cell is kept as it is, an empty one is missing."""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from pipeline.core.errors import UserError
from pipeline.core.settings import Csv
from pipeline.tables.raw import check_names

SAMPLE = 2**18  # bytes from which separator, header and encoding are found
LINES = 100  # lines of the sample
BLOCK = 2**26  # bytes parsed at a time; no row may be longer
HEADER = 20  # lines at the start among which the header is looked for
FOOTER = 10  # lines at the end that may be a footer
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_LATIN = ["cp1252", "latin_1", "iso8859_15", "cp1250", "cp1254", "mac_roman", "cp437", "cp850"]
_OTHER_LETTERS = ["cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "shift_jis", "euc_jp", "gb18030", "big5", "euc_kr"]
_OTHER_WORDS = re.compile(rb"(?<![A-Za-z\x80-\xff])[\x80-\xff]{2,}")
_MISPLACED = re.compile(r"[£¥³¹¿¯ª¼][^\W\d_]|[^\W\d_][£¥³¹¿¯¼]")
_OTHER_FILES = {
    rb"\s*<[a-z!?]": "a web page or XML; is a login or another address needed?",
    rb"\s*(\{\s*[\"}]|\[\s*[\[{\"\]])": "JSON; convert it to CSV or Parquet",
    rb"PK\x03\x04": "an Excel workbook or a ZIP archive; save the sheet as CSV, or name the archive .zip",
    rb"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as CSV",
    rb"PAR1": "Parquet; name it .parquet",
    rb"\x1f\x8b": "compressed; name it .gz",
    rb"%PDF": "a PDF",
}


def read(
    source: str, content: bytes, options: Csv, *, tabs: bool = False, note: Callable[[str], None] = print
) -> pd.DataFrame:
    """Parse the bytes of a text file; raises `UserError` naming `source` and the line that does not fit.

    What was guessed or left out is told to `note`. `tabs` names the separator of a .tsv file.
    """
    for pattern, what in _OTHER_FILES.items():
        if re.match(pattern, content[:1000].removeprefix(codecs.BOM_UTF8), re.IGNORECASE):
            raise UserError(f"{source} is {what}")
    content = _as_utf8(source, content, options.encoding, note)
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")  # the line ends of old Macintosh files
    if not content or content.isspace():
        raise UserError(f"{source} is empty")
    if b"\0" in content:
        raise UserError(f"{source} is not text, since it holds a NUL: if it is UTF-16, set data.csv.encoding")
    for marker in (b"<<<<<<< ", b">>>>>>> "):
        place = 0 if content.startswith(marker) else content.find(b"\n" + marker) + 1
        if content.startswith(marker, place):
            line = content.count(b"\n", 0, place) + 1
            raise UserError(f"{source}, line {line}: a conflict marker of git: resolve the conflict")
    before, after = options.skipped
    start, named = _table_start(source, content, before, note)
    body = _without_last_lines(content, after)[start:]
    delimiter = "\t" if tabs else named or _sniff(body, options.quote)
    delimiter = delimiter if options.separator == "auto" else options.separator
    if delimiter == " ":
        body = re.sub(rb"(?m)^ +| +(?=\r?$)", b"", re.sub(rb"[ \t]+", b" ", body))
    spaced = f"{delimiter} {options.quote}".encode()
    rows = body[:SAMPLE].splitlines()[1:LINES]
    if options.quote != "none" and rows and all(spaced in line for line in rows):
        body = body.replace(spaced, spaced.replace(b" ", b""))  # a quote counts only at the start of a cell
    layout = Layout(source, delimiter, options, content.count(b"\n", 0, start))
    return layout.parse(body, note)


class Layout:
    """Parse a table of known separator and quotes, with line numbers for errors."""

    def __init__(self, source: str, delimiter: str, options: Csv, skipped: int) -> None:
        self.source, self.delimiter, self.quote, self.skip = source, delimiter, options.quote, options.skipped
        self.skipped = skipped  # lines of the file before those that are read

    def rows(self, body: bytes) -> Iterator[tuple[int, int, list[str]]]:
        """Yield first and last line number and cells of each row that is not blank."""
        csv.field_size_limit(2**31 - 1)  # a cell may hold a long text
        reader = _csv_reader(io.TextIOWrapper(io.BytesIO(body), "utf-8", newline=""), self.delimiter, self.quote)
        last = self.skipped
        try:
            for row in reader:
                first, last = last + 1, self.skipped + reader.line_num
                if row:
                    yield first, last, row
        except csv.Error as error:
            raise UserError(f"{self.source}, line {self.skipped + reader.line_num}: {error}") from None

    def parse(self, body: bytes, note: Callable[[str], None]) -> pd.DataFrame:
        header, start = self._header(body)
        # A letter such as é is one character, as it is typed in params.yaml, or an e with an accent after it.
        header = [unicodedata.normalize("NFC", name) for name in header]
        names = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(header)]
        check_names(self.source, names)
        if re.compile(rb"\s*\Z").match(body, start):
            return pd.DataFrame(columns=names, dtype="str")
        ragged: list[int] = []
        width = len(names)
        quoted = self.quote != "none" and body.find(self.quote.encode(), start) >= 0
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(pa.py_buffer(body).slice(start)),
                arrow_csv.ReadOptions(column_names=[f"f{place}" for place in range(width)], block_size=BLOCK),
                arrow_csv.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char=self.quote if quoted else False,
                    newlines_in_values=quoted,
                    ignore_empty_lines=width > 1,  # in a single column they are empty cells
                    invalid_row_handler=lambda row: ragged.append(row.actual_columns) or "skip",  # type: ignore[func-returns-value]
                ),
                arrow_csv.ConvertOptions(
                    column_types={f"f{place}": pa.large_string() for place in range(width)},
                    null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True,
                ),
            )  # fmt: skip
        except pa.ArrowInvalid as error:
            self._check(body[start:], width)
            raise UserError(f"{self.source} is not a table: {str(error).splitlines()[0]}") from None
        n_lines = body.count(b"\n", start) + (not body.endswith(b"\n"))
        if ragged or (quoted and n_lines > table.num_rows):
            self._check(body[start:], width)
        table = table.rename_columns(names)
        self._check_header_once(table, header)
        n = _filled(table)
        if n < table.num_rows:
            note(f"{self.source}: {table.num_rows - n:,} empty rows at the end left out")
        frame: pd.DataFrame = table.slice(0, n).to_pandas()
        return frame

    def _check_header_once(self, table: pa.Table, header: list[str]) -> None:
        """Raise `UserError` if a row repeats the header, as where files were joined."""
        again = None
        for column, name in zip(table.columns, header, strict=True):
            equal = pc.equal(column, name) if name else pc.is_null(column)
            again = equal if again is None else pc.and_kleene(again, equal)
            if not pc.any(again).as_py():
                return
        if again is not None and (rows := pc.indices_nonzero(again)):
            raise UserError(f"{self.source}, row {rows[0].as_py() + 1} of the table is the header again: remove it")

    def _header(self, body: bytes) -> tuple[list[str], int]:
        """Return the cells of the header, and where it ends; raises `UserError` if the first line is not it."""
        first, last, header = next(self.rows(body), (0, 0, []))
        if not header:
            raise UserError(f"{self.source} is empty")
        sample = list(islice(self.rows(body[:SAMPLE].rpartition(b"\n")[0] or body[:SAMPLE]), LINES)) or [
            (first, first, header)
        ]
        width, times = Counter(len(row) for _, _, row in sample).most_common(1)[0]
        most = [row for _, _, row in sample if len(row) == width]
        nameless = width == len(header) + 1 and times == len(sample) - 1 > 0
        trailing = nameless and not any(row[-1] for row in most)  # each row ends in a separator
        numbered = nameless and not trailing and _are_row_names([row[0] for row in most])  # as R writes them
        self._check_padded(header, sample)
        if trailing or numbered or width <= len(header) or 2 * times <= len(sample):
            ends = [found.end() for found in islice(re.finditer(rb"\r\n|\n|\r", body), last - self.skipped)]
            if len(ends) < last - self.skipped:
                return header, len(body)
            self.skipped = last
            return [*[""] * numbered, *header, *[""] * trailing], ends[-1]
        line = next(line for line, _, row in sample if len(row) == width)
        hint = f"the header is probably line {line}: set data.csv.skip to {line - 1}"
        if nameless:
            hint = "give every column a name"
        if any(len(cell) > 1 and cell[0] == cell[-1] == "'" for cell in (cell.strip() for cell in header)):
            hint = "are cells quoted? set data.csv.quote"
        raise UserError(f"{self.source}, line {first}: {_cells(len(header))}, but most lines have {width}; {hint}")

    def _check_padded(self, header: list[str], sample: list[tuple[int, int, list[str]]]) -> None:
        """Raise `UserError` for a first line that a spreadsheet filled up with empty cells, such as a title."""
        filled = [sum(bool(cell.strip()) for cell in row) for _, _, row in sample[:HEADER]]
        if filled[0] <= len(header) // 2 and max(filled) == len(header):
            line, _, row = sample[filled.index(len(header))]
            if line > 1 + self.skipped and not any(re.search(r"^[\d\s.,-]+$", cell) for cell in row):
                raise UserError(
                    f"{self.source}, line {1 + self.skipped} names {filled[0]} of {len(header)} columns;"
                    f" the header is probably line {line}: set data.csv.skip to {line - 1}"
                )

    def _check(self, body: bytes, width: int) -> None:
        """Raise `UserError` for the first row of another width, or for rows that a stray quote makes one cell."""
        n_lines = self.skipped + body.rstrip(b"\r\n").count(b"\n") + 1
        lines = body.split(b"\n")
        for first, last, row in self.rows(body):
            inner = lines[first - self.skipped : last - self.skipped - 1]
            separators = self.delimiter.encode()
            swallowed = sum(line.count(separators) >= max(1, width - 1) for line in inner)
            if 2 * swallowed >= len(inner) > (0 if width > 2 else 2):
                closes = f"closes in line {last}" if last < n_lines else "is never closed"
                raise UserError(
                    f"{self.source}, line {first}: the lines up to {last} are one cell: a quote opens in line {first} and"
                    f" {closes}; correct it, or set data.csv.quote to none"
                )
            if len(row) != width:
                hint = ""
                if n_lines - first < FOOTER:
                    before, after = self.skip
                    hint = (
                        f"; if the table ends before it, set data.csv.skip to [{before}, {after + n_lines - first + 1}]"
                    )
                if row[0].startswith("#"):
                    hint = "; lines that begin with # are comments only before the header: remove it"
                raise UserError(f"{self.source}, line {last}: {_cells(len(row))}, but the header has {width}{hint}")


def _are_row_names(cells: list[str]) -> bool:
    """True if the cells are the numbers from 1, or words that never repeat."""
    counted = cells == [str(k + 1) for k in range(len(cells))]
    return counted or (len(set(cells)) == len(cells) and all(re.search("[A-Za-z]", cell) for cell in cells))


def _as_utf8(source: str, content: bytes, encoding: str, note: Callable[[str], None]) -> bytes:
    marked = next((name for bom, name in _BOMS.items() if content.startswith(bom)), None)
    known = marked or ("utf-8" if encoding == "auto" else encoding)
    try:
        if known.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig"):
            content.decode("utf-8")
            return content.removeprefix(codecs.BOM_UTF8)
        return content.decode(known).encode("utf-8")
    except (UnicodeError, ValueError) as error:
        place = error.start if isinstance(error, UnicodeDecodeError) else 0
        if encoding != "auto" or marked:
            where = f" (byte {place})" if place else ""
            raise UserError(
                f"{source} is not {known} text{where}: set data.csv.encoding, for example to latin-1"
            ) from None
    from charset_normalizer import from_bytes

    sample = content[max(0, place - SAMPLE // 2) : place + SAMPLE // 2]
    # Of the encodings of Latin letters, those of Windows are by far the most common.
    latin, others = _has_latin_words(sample), b" ".join(_OTHER_WORDS.findall(sample))
    isolated = _LATIN if latin else _OTHER_LETTERS
    # Numbers and separators between words let each encoding seem unlikely.
    matches = from_bytes(sample, cp_isolation=isolated) or from_bytes(others, cp_isolation=isolated, threshold=0.9)
    found = [match for match in matches if match.encoding in isolated]
    likely = sorted(found, key=lambda match: (match.chaos, -match.coherence, isolated.index(match.encoding)))
    names = dict.fromkeys(["cp1252", "cp1250"] * latin + [match.encoding for match in likely] + ["cp1252"])
    # A sign between letters, such as £ in front of a small letter, shows that this is not the encoding.
    candidates = sorted(names, key=lambda name: bool(_MISPLACED.search(_decoded(sample, name) or "")))
    text, guessed = next(
        ((text, name) for name in candidates if (text := _decoded(content, name)) is not None), ("", "")
    )
    if not guessed:
        raise UserError(
            f"{source} is not UTF-8 text (byte {place}): set data.csv.encoding, for example to cp1252"
        ) from None
    line = content[content.rfind(b"\n", 0, place) + 1 :][:SAMPLE].split(b"\n")[0].decode(guessed, "replace").strip()
    at = min(place - content.rfind(b"\n", 0, place), len(line))
    shown = line[max(0, at - 20) : at + 20]
    note(f"{source}: not UTF-8 (byte {place}); read as {guessed}, as in {shown!r}; data.csv.encoding overrides it")
    return text.encode("utf-8")


def _has_latin_words(sample: bytes) -> bool:
    """True if words mix ASCII with some other letters, as in Fläche; words of Greek or Chinese do not."""
    mixed = len(re.findall(rb"[A-Za-z][\x80-\xff]|[\x80-\xff][A-Za-z]", sample))
    other_words = len(_OTHER_WORDS.findall(sample))
    return mixed >= other_words


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeError:
        return None


def _table_start(source: str, content: bytes, before: int, note: Callable[[str], None]) -> tuple[int, str | None]:
    """Return the byte at which the header begins, and the separator named by a line `sep=` before it."""
    start, separator, comments = 0, None, 0
    for _ in range(before):
        start = content.find(b"\n", start) + 1
        if not start:
            raise UserError(f"{source}: data.csv.skip is {before}, but the file has fewer lines")
    while True:
        end = content.find(b"\n", start) + 1 or len(content)
        line = content[start:end].strip(b"\r\n ")
        if found := re.fullmatch(rb'"?sep=(.|\\t)"?', line, re.IGNORECASE):
            separator = found[1].decode().replace("\\t", "\t")
        elif line.startswith(b"#") and not re.match(rb"#\w*[,;\t|]", line):
            comments += 1
        elif line or end == len(content):
            break
        start = end
    if comments:
        note(f"{source}: {comments} comment line{'s' * (comments > 1)} before the header left out")
    return start, separator


def _without_last_lines(content: bytes, n: int) -> bytes:
    content = content.rstrip(b"\r\n") if n else content
    for _ in range(n):
        content = content[: max(0, content.rfind(b"\n"))]
    return content


def _sniff(body: bytes, quote: str) -> str:
    """Choose the separator that gives most lines the same number of cells, if possible the header's, and the most."""
    sample = body[:SAMPLE]
    text = (
        (sample.rpartition(b"\n")[0] or sample).decode("utf-8", "ignore")
        if len(body) > SAMPLE
        else sample.decode("utf-8", "ignore")
    )

    def columns(delimiter: str) -> tuple[int, int]:
        try:
            widths = [
                len(row) for row in islice(_csv_reader(io.StringIO(text, newline=""), delimiter, quote), LINES) if row
            ]
        except csv.Error:
            return 0, 0
        width, times = Counter(widths).most_common(1)[0] if widths else (0, 0)
        width = width if 2 * times >= len(widths) else 0
        return (width if widths and width == widths[0] > 1 else 0), width

    found = max(",;\t|", key=columns)
    if columns(found)[1] <= 1 and text.strip():  # columns aligned with spaces
        lines = [" ".join(line.split()) for line in text.splitlines()[:LINES] if line.strip()]
        first, *rest = [len(next(_csv_reader(io.StringIO(line), " ", quote))) for line in lines]
        same = bool(rest) and min(rest) == max(rest) > 1
        found = " " if same and first in (rest[0], rest[0] - 1) else found
    return found


def _csv_reader(lines: IO[str], delimiter: str, quote: str) -> Any:
    if quote == "none":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter, quotechar=quote)


def _filled(table: pa.Table) -> int:
    """Return the number of rows up to the last one that has a cell."""
    n: int = table.num_rows
    while n and all(not column[n - 1].is_valid for column in table.columns):
        n -= 1
    return n


def _cells(n: int) -> str:
    return "1 cell" if n == 1 else f"{n} cells"
