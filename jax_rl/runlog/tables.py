"""What training changed: figures with intervals side by side, and translations with their errors marked."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

FIGURES = (  # name in the log, title, digits
    ("reward", "reward (weighted sum)", 3),
    ("metricx_reward", "MetricX reward", 3),
    ("xcomet_score", "XCOMET", 4),
    ("mqm_score", "MQM (judge)", 2),
    ("chrf", "chrF (sentence, 0..1)", 4),
    ("spans", "error spans", 3),
    ("span_critical", "  critical", 3),
    ("span_major", "  major", 3),
    ("span_minor", "  minor", 3),
    ("completion_len", "tokens", 2),
    ("truncated", "cut off at max_new_tokens", 3),
)
CORPUS_FIGURES = {"corpus_chrf++": "corpus chrF++", "corpus_bleu": "corpus BLEU"}  # BLEU perhaps by language: _de
DECODINGS = (("", "greedy"), ("sampled_", "sampled"))
SEVERITIES = ("MINOR", "MAJOR", "CRITICAL")  # mild to harsh
STYLES = {"MINOR": "black on yellow", "MAJOR": "white on magenta", "CRITICAL": "bold white on red"}
UNKNOWN_STYLE = "black on white"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: its `eval` row of the log, and a row for each greedy translation."""

    update: int
    row: Mapping[str, Any]
    outputs: Sequence[Mapping[str, Any]]


def before_after(before: Evaluated | None, after: Evaluated) -> RenderableType:
    """Each figure's mean with its 95 % interval before and after, and the paired difference with its own.

    Where the first evaluation also sampled at a lower temperature, that stands beside it: a policy that has only
    become surer of itself would look like it.
    """
    colder = before is not None and any(name.startswith("colder_") for name in before.row)
    table = Table(box=box.SIMPLE_HEAD, title=_title(before, after), title_justify="left", pad_edge=False)
    table.add_column("")
    columns = ["before", *(["before, colder"] if colder else []), "after", "change"] if before else ["after"]
    for column in columns:
        table.add_column(column, justify="right")
    corpus = [
        (name, f"{title} {name.removeprefix(figure).lstrip('_')}".rstrip())
        for figure, title in CORPUS_FIGURES.items()
        for name in after.row
        if name.startswith(figure) and f"{name}_signature" in after.row
    ]
    for prefix, decoding in DECODINGS:
        figures = [figure for figure in FIGURES if after.row.get(f"{prefix}{figure[0]}_mean") is not None]
        if not figures:
            continue
        table.add_row(Text(decoding, style="bold"))
        for figure in figures:
            table.add_row(*_figure_row(prefix, figure, before, after, colder))
        for name, title in corpus if decoding == "greedy" else ():
            table.add_row(*_corpus_row(name, title, before, after, colder))
    notes = [f"{len(after.outputs)} held-out prompts; means with 95 % bootstrap intervals, the change paired by prompt"]
    paired = after.row.get("examples_paired", len(after.outputs))
    if paired < len(after.outputs):
        notes.append(f"{paired} of the prompts were also evaluated before; the change is over these")
    if colder:
        notes.append("colder: the policy of before, sampled at eval.baseline_temperature")
    notes += [f"{title}: {after.row[f'{name}_signature']}" for name, title in corpus]
    return Group(table, *(Text(note, style="dim") for note in notes))


def translations(before: Evaluated | None, after: Evaluated, count: int = 5) -> RenderableType:
    """The first `count` held-out translations, before and after, with their error spans marked."""
    legend = Text("error spans:")
    for severity in SEVERITIES:
        legend.append(" ").append_text(_marked(severity, severity.lower()))
    earlier = {_example(row): row for row in before.outputs} if before else {}
    blocks: list[RenderableType] = [legend]
    for row in after.outputs[:count]:
        lines = [("source", Text(_printable(row["src_text"])))]
        if row.get("ref_text"):
            lines.append(("reference", Text(_printable(row["ref_text"]))))
        if _example(row) in earlier:
            lines.append(("before", _translation(earlier[_example(row)])))
        lines.append(("after", _translation(row)))
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in lines:
            grid.add_row(name, text)
        blocks += [Text(""), Text(f"example {row['example_id']}", style="dim"), grid]
    return Group(*blocks)


def _example(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["example_id"], row["src_text"]


def mark_spans(text: str, spans: Sequence[Mapping[str, Any]]) -> Text:
    """`text` with every error span in colour and, for readers without colour, as [severity letter:characters].

    Where spans overlap the harsher one shows. Spans are `start, end` (end exclusive) and `severity`.
    """
    worst: list[str | None] = [None] * len(text)
    rank = {name: i for i, name in enumerate(SEVERITIES)}
    for span in sorted(spans, key=lambda span: rank.get(str(span["severity"]).upper(), -1)):
        for i in range(max(0, span["start"]), min(len(text), span["end"])):
            worst[i] = str(span["severity"]).upper()
    marked, start = Text(), 0
    for end in range(1, len(text) + 1):
        if end == len(text) or worst[end] != worst[start]:
            piece, severity = _printable(text[start:end]), worst[start]
            marked.append_text(Text(piece) if severity is None else _marked(severity, piece))
            start = end
    return marked


def print_report(before: Evaluated | None, after: Evaluated, console: Console | None = None) -> None:
    """Both of the above, to stdout by default."""
    console = console or Console()
    if not console.is_terminal:  # a file or a pipe: wide enough for the table, whatever the window
        console = Console(file=console.file, width=max(console.width, 160), no_color=True)
    console.print(before_after(before, after))
    console.print()
    console.print(translations(before, after))


def _title(before: Evaluated | None, after: Evaluated) -> str:
    return f"after update {after.update}" + (f", compared with update {before.update}" if before else "")


def _figure_row(
    prefix: str, figure: tuple[str, str, int], before: Evaluated | None, after: Evaluated, colder: bool
) -> list[str | Text]:
    name, title, digits = figure
    key = prefix + name
    cells: list[str | Text] = [f"  {title}"]
    if before:
        cells.append(_with_interval(before.row, key, digits))
        if colder:
            cells.append(_with_interval(before.row, f"colder_{name}", digits) if prefix == "sampled_" else "")
    cells.append(_with_interval(after.row, key, digits))
    if before:
        cells.append(_difference(after.row, key, digits))
    return cells


def _corpus_row(name: str, title: str, before: Evaluated | None, after: Evaluated, colder: bool) -> list[str | Text]:
    value = after.row[name]
    if before is None:
        return [f"  {title}", f"{value:.2f}"]
    earlier = before.row.get(name)
    shown = ["-", "-"] if earlier is None else [f"{earlier:.2f}", f"{value - earlier:+.2f}"]
    return [f"  {title}", shown[0], *([""] if colder else []), f"{value:.2f}", shown[1]]


def _with_interval(row: Mapping[str, Any], key: str, digits: int) -> str:
    mean, interval = row.get(f"{key}_mean"), row.get(f"{key}_ci95")
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + (f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else "")


def _difference(row: Mapping[str, Any], key: str, digits: int) -> Text:
    difference, interval = row.get(f"{key}_diff"), row.get(f"{key}_diff_ci95")
    if difference is None or interval is None:
        return Text("-")
    text = f"{difference:+.{digits}f} [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    clear_of_zero = interval[0] > 0 or interval[1] < 0
    return Text(text, style="bold") if clear_of_zero else Text(text)


def _translation(row: Mapping[str, Any]) -> Text:
    scores = [f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in row["scores"].items()]
    text = mark_spans(row["completion_text"], row["spans"]) if row["completion_text"] else Text("(empty)", style="dim")
    return Text.assemble(text, (f"   ({', '.join(scores)})", "dim")) if scores else text


def _marked(severity: str, text: str) -> Text:
    letter = {"MINOR": "m", "MAJOR": "M", "CRITICAL": "C"}.get(severity, "?")
    return Text(f"[{letter}:{text}]", style=STYLES.get(severity, UNKNOWN_STYLE))


def _printable(text: str) -> str:
    """`text` on one line and without control characters, which a model may write and a terminal would obey."""
    text = text.replace("\r\n", "\n").replace("\n", "\u23ce").replace("\t", " ")
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
