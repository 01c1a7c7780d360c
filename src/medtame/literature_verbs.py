"""`medtame papers` and `medtame models`: the review's literature on the command line. Nothing heavy is imported before it is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medtame.errors import DataError, SettingsError

if TYPE_CHECKING:
    from medtame.literature.schema import Model, Paper

Text = Annotated[str | None, typer.Argument(help="Words of the title; with the whole title also medtame's methods closest to it.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
NO_VALUE = "`not said` finds empty fields."


def mount(app: typer.Typer) -> None:
    """Both verbs, on a command line."""
    app.command(
        epilog="Examples:  medtame papers --task segmentation --strategy fusion   |   medtame papers --counts task,strategy   |   "
        'medtame papers --like "few-shot anomaly detection"   |   medtame papers --year 2024-2025 --code yes --bibtex'
    )(papers)
    app.command(epilog='Examples:  medtame models   |   medtame models BiomedCLIP   |   medtame models --kind "dual encoder" --json')(
        models
    )


def papers(
    text: Text = None,
    task: Annotated[str | None, typer.Option("--task", help="Main or other task: see `medtame tasks`.")] = None,
    main_task: Annotated[str | None, typer.Option("--main-task", help="Main task only.")] = None,
    other_task: Annotated[str | None, typer.Option("--other-task", help="Other tasks only.")] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help=f"Adaptation strategy, main or second. {NO_VALUE}")] = None,
    learning: Annotated[str | None, typer.Option("--learning", help=f"Learning strategy. {NO_VALUE}")] = None,
    modality: Annotated[str | None, typer.Option("--modality", help=f"Such as X-ray. {NO_VALUE}")] = None,
    body_part: Annotated[str | None, typer.Option("--body-part", help=f"Such as chest. {NO_VALUE}")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Such as CLIP.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Such as MIMIC-CXR.")] = None,
    year: Annotated[str | None, typer.Option("--year", help="2024, or 2023-2025.")] = None,
    code: Annotated[str | None, typer.Option("--code", help="yes or no: is a repository named?")] = None,
    evidence: Annotated[str | None, typer.Option("--evidence", help="What labels rest on: abstract, repository, title only.")] = None,
    like: Annotated[str | None, typer.Option("--like", help="Titles nearest in meaning, by the text side of `bundled`.")] = None,
    top: Annotated[int, typer.Option("--top", help="How many titles --like shows.", min=1)] = 10,
    counts: Annotated[str | None, typer.Option("--counts", help="Two fields, such as task,strategy: how many papers of each.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="With --counts: an SVG file of the matrix.")] = None,
    as_json: Json = False,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="BibTeX on standard output.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table on standard output.")] = False,
    check: Annotated[Path | None, typer.Option("--check", help="A table of papers: what is wrong, line by line.")] = None,
    add: Annotated[str | None, typer.Option("--add", help="arxiv:ID: a new row with title, year and link, asked of arXiv.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --add: the table that the row is appended to.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Write the literature as one HTML page.")] = None,
) -> None:
    """The review's papers: find, count, cite, check."""
    from medtame.literature import choose, tables

    if check is not None:
        return checked(check)
    if add is not None:
        return added(add, out)
    if page is not None:
        return paged(page)
    filters = {
        "task": task,
        "main_task": main_task,
        "other_task": other_task,
        "strategy": strategy,
        "learning": learning,
        "modality": modality,
        "body_part": body_part,
        "model": model,
        "dataset": dataset,
        "year": year,
        "code": code,
        "evidence": evidence,
    }
    chosen = {name: value for name, value in filters.items() if value is not None}
    exact = choose.titled(tables.papers(), text) if text else None
    found = [exact] if exact and not chosen else choose.filtered(tables.papers(), chosen, text or "")
    if sum((as_json, bibtex, markdown)) > 1:
        raise SettingsError("more than one of --json, --bibtex, --markdown: give one")
    if picture is not None and counts is None:
        raise SettingsError("--picture is of --counts: add --counts task,strategy")
    if counts is not None:
        return counted(found, counts, picture, as_json=as_json)
    likeness = ranked(found, like)[:top] if like is not None else []
    found = [paper for paper, _ in likeness] or found
    if bibtex or markdown:
        from medtame.literature import records

        return typer.echo(records.bibtex(found) if bibtex else records.markdown(found), nl=False)
    if text and len(found) == 1 and like is None:
        return one(found[0], as_json=as_json)
    return listed(found, [near for _, near in likeness], as_json=as_json)


def listed(found: Sequence[Paper], likeness: Sequence[float], *, as_json: bool) -> None:
    """Papers as a table, evidence beside the labels; with their likeness where a text was asked."""
    from medtame.literature import records, words

    if as_json:
        made = [records.paper(paper) for paper in found]
        made = [row | {"likeness": round(near, 4)} for row, near in zip(made, likeness, strict=True)] if likeness else made
        return typer.echo(json.dumps(made, ensure_ascii=False))
    from medtame import terminal

    titles: tuple[str, ...] = records.COLUMNS[:8]
    rows = [tuple(map(plain, records.cells(paper)[:8])) for paper in found]
    if likeness:
        titles, rows = ("alike", *titles), [(f"{near:.2f}", *row) for near, row in zip(likeness, rows, strict=True)]
    plural = "paper" if len(found) == 1 else "papers"
    return terminal.show(terminal.listing(titles, rows), f"{len(found)} {plural}. {words.READING} {words.EVIDENCE_NOTE}")


def one(paper: Paper, *, as_json: bool) -> None:
    """One paper with all that is known of it, and medtame's methods closest to it."""
    from medtame import shelves, terminal
    from medtame.literature import choose, records, words

    methods = choose.closest_methods(paper, shelves.methods())
    record = records.paper(paper) | {"methods": methods}
    if as_json:
        return typer.echo(json.dumps([record], ensure_ascii=False))
    close = "; ".join(f"{row['method']} ({row['why']})" for row in methods) or "none yet for its main task and strategy"
    lines = [(name, plain(records.shown(value))) for name, value in record.items() if name not in ("methods", "origin")]
    return terminal.show(terminal.listing(("", ""), [*lines, ("medtame's methods", close)]), f"{words.READING} {words.EVIDENCE_NOTE}")


def counted(found: Sequence[Paper], fields: str, picture: Path | None, *, as_json: bool) -> None:
    """The matrix of counts: a table, JSON, and a picture."""
    from medtame import terminal
    from medtame.literature import choose, words

    names = [name.strip() for name in fields.split(",")]
    if len(names) != 2:
        raise SettingsError(f"--counts takes two fields by a comma, such as task,strategy, not {fields!r}")
    record = choose.counts(found, *names)
    if picture is not None:
        from medtame.literature.picture import svg

        write(picture, svg(record, words.READING))
    if as_json:
        return typer.echo(json.dumps(record, ensure_ascii=False))
    rows = [(name, *map(str, line)) for name, line in zip(record["rows"]["names"], record["counts"], strict=True)]
    table = terminal.listing((names[0], *record["columns"]["names"]), rows)
    once = "main task and main strategy count; where a field has several values a paper counts in each"
    return terminal.show(table, f"{record['papers']} papers; {once}. {words.READING}", *([f"picture: {picture}"] if picture else []))


def ranked(found: Sequence[Paper], text: str) -> list[tuple[Paper, float]]:
    """Papers with the likeness of their titles to a text, the nearest first."""
    from medtame.features.store import default_folder
    from medtame.literature import sentences, tables

    if not text.strip():
        raise SettingsError("--like takes a text, not an empty one")
    everything = tables.papers()
    likeness = sentences.alike(text, [paper.title for paper in everything], default_folder(), sentence_files)
    near = {paper.title: float(value) for paper, value in zip(everything, likeness, strict=True)}
    return sorted(((paper, near[paper.title]) for paper in found), key=lambda pair: -pair[1])


def sentence_files() -> Any:
    """The sentence tower of `bundled`, its files checked. Slow to import, so asked only where no vectors are kept."""
    from medtame.encoders import bundled
    from medtame.literature.sentences import Files

    return Files(bundled.checked(bundled.TEXT_WEIGHTS), bundled.checked(bundled.TOKENIZER))


def checked(path: Path) -> None:
    """What is wrong in a table, line by line; exit code 2 where anything is."""
    from medtame.literature import tables

    rows, faults = tables.read_papers(path)
    for fault in faults:
        typer.echo(f"{path} {fault}")
    if faults:
        raise typer.Exit(2)
    typer.echo(f"{path}: {len(rows)} papers, nothing wrong")


def added(identifier: str, out: Path | None) -> None:
    """A new row from arXiv, printed or appended to a table; its labels are left to be filled."""
    from medtame import terminal
    from medtame.literature import arxiv, links, tables
    from medtame.literature.schema import Paper

    there = next((paper for paper in tables.papers() if links.key(paper.identifier) == links.key(identifier)), None)
    if there is not None:
        raise DataError(f"{identifier} is in the table already: {there.title!r}")
    found = arxiv.looked_up(identifier) | {"evidence": "title only", "origin": "added"}
    row = tables.line([found.get(name, "") for name in Paper.model_fields])
    if out is None:
        typer.echo(tables.line(list(Paper.model_fields)) + row, nl=False)
    else:
        before = tables.text(out) if out.exists() else tables.line(list(Paper.model_fields))
        write(out, before + ("" if before.endswith("\n") else "\n") + row)
    where = out or "the row, in a file"
    terminal.complain(f"now fill task, strategy and the other labels, and run medtame papers --check on {where} (see CONTRIBUTING.md)")


def paged(path: Path) -> None:
    """The static page."""
    from medtame import shelves, terminal
    from medtame.literature import page, tables

    write(path, page.html(tables.papers(), tables.models(), shelves.methods()))
    terminal.show(f"page: {path}")


def models(
    name: Annotated[str | None, typer.Argument(help="One model, with the documents that were read.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="dual encoder, generative, segmenter, generator … or unknown.")] = None,
    reached: Annotated[str | None, typer.Option("--reached", help="open_clip, transformers, API, weights not public … or unknown.")] = None,
    modality: Annotated[str | None, typer.Option("--modality", help="Such as X-ray, or unknown.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Such as MIT, or unknown.")] = None,
    domain: Annotated[str | None, typer.Option("--domain", help="natural or medical, as the review files them.")] = None,
    as_json: Json = False,
) -> None:
    """The review's models: how each is reached, its licence, size, kind, and its name in medtame."""
    from medtame import terminal
    from medtame.literature import choose, records, tables

    filters = {"name": name, "kind": kind, "reached": reached, "modality": modality, "licence": licence, "domain": domain}
    found = choose.models(tables.models(), {key: value for key, value in filters.items() if value is not None})
    if as_json:
        return typer.echo(json.dumps([records.model(row) for row in found], ensure_ascii=False))
    if name:
        return terminal.show(terminal.listing(("", ""), about(found[0])))
    titles = ("model", "kind", "reached by", "licence (of)", "size", "modality", "in medtame", "read")
    return terminal.show(terminal.listing(titles, [cells(row) for row in found]), records.unknowns_said(found), NOTE)


NOTE = "read: how many documents the facts come from; medtame models NAME lists them. What none of them says is unknown."


def cells(row: Model) -> tuple[str, ...]:
    licence = f"{row.licence} ({row.licence_covers})" if row.licence_covers != "unknown" else row.licence
    facts = (row.name, row.kind, row.reached, licence, row.size, row.modality, row.loads_as or "not yet", str(len(row.source)))
    return tuple(map(plain, facts))


def about(row: Model) -> list[tuple[str, str]]:
    """All of one model, and the review's papers that use it."""
    from medtame.literature import choose, records, tables

    uses = [paper.title for paper in tables.papers() if choose.plain(row.name) in map(choose.plain, paper.model)]
    record = records.model(row) | {"loads_as": row.loads_as or "not yet", "source": "\n".join(row.source) or "nothing was read"}
    record["papers that use it"] = "\n".join(uses) or "none of the review's names it"
    return [(key, plain(str(value or ""))) for key, value in record.items()]


def plain(text: str) -> str:
    """Brackets of a title are no markup of the terminal."""
    from rich.markup import escape

    return escape(text)


def write(path: Path, text: str) -> None:
    """Write a file whole. Raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}): give another file") from None
