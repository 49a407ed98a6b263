"""A report as one HTML file: nothing is fetched, no script runs, it reads on a phone, in the dark and by keyboard."""

from __future__ import annotations

from html import escape

from vitprune.reports.parts import Report, Section

STYLE = """
:root{color-scheme:light dark;--ink:#16202e;--soft:#4a586b;--line:#d0d8e2;--paper:#fff;--bar:#2b6cb0;--good:#176a41;--bad:#a3201a;--open:#735800;--word:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e8edf3;--soft:#a9b8c9;--line:#2f3c4b;--paper:#10161d;--bar:#6ba8e5;--good:#58c48d;--bad:#f2877f;--open:#d9b44a;--word:#10161d}}
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0}
main{max-width:1080px;margin:0 auto;padding:1rem}h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:1.8rem 0 .5rem}
p{color:var(--soft);margin:.2rem 0 .6rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto;max-width:100%}.scroll:focus-visible,a:focus-visible{outline:2px solid currentColor;outline-offset:2px}
table{border-collapse:collapse;min-width:100%}th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;font-variant-numeric:tabular-nums;vertical-align:top}
th{color:var(--soft);font-weight:600}.verdict{padding:.1rem .55rem;border-radius:.35rem;color:var(--word);font-size:1rem;white-space:nowrap}
.passed,.ok{background:var(--good)}.failed,.error{background:var(--bad)}.undecided{background:var(--open)}
.row{display:flex;gap:.6rem;padding:.4rem 0}figure{margin:0;flex:none;text-align:center}img{display:block;width:112px;height:112px;image-rendering:pixelated}
figcaption{font-size:.8rem;color:var(--soft);max-width:112px;white-space:pre-line}.drawing svg{display:block;width:100%;min-width:560px;max-width:900px}nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;list-style:none}nav a{color:inherit}
"""


def page(report: Report) -> str:
    """The file's text."""
    links = "".join(f'<li><a href="#s{number}">{escape(part.title)}</a></li>' for number, part in enumerate(report.sections))
    body = "".join(_section(part, number) for number, part in enumerate(report.sections))
    known = report.status in ("passed", "ok", "failed", "error", "undecided")
    word = f' <span class="verdict {report.status}">{report.status.upper()}</span>' if known else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>vitprune: {escape(report.title)}</title><style>{STYLE}</style></head><body><main>'
        f'<h1>{escape(report.title)}{word}</h1><nav aria-label="sections"><ul>{links}</ul></nav>{body}</main></body></html>\n'
    )


def _section(part: Section, number: int) -> str:
    note = f"<p>{escape(part.note)}</p>" if part.note else ""
    shown = _table(part) if part.columns else ""
    drawing = _scrolled(f"drawing: {part.title}", part.drawing, "scroll drawing") if part.drawing else ""
    rows = "".join(f'<div class="row">{"".join(map(_figure, row))}</div>' for row in part.pictures)
    gallery = _scrolled(f"pictures: {part.title}", rows) if rows else ""
    return f'<section aria-labelledby="s{number}"><h2 id="s{number}">{escape(part.title)}</h2>{note}{drawing}{shown}{gallery}</section>'


def _scrolled(label: str, content: str, style: str = "scroll") -> str:
    """What may be wider than a phone scrolls in a box of its own, which the keyboard reaches."""
    return f'<div class="{style}" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def _table(part: Section) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in part.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
    return _scrolled(f"table: {part.title}", f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _figure(picture: tuple[str, str]) -> str:
    caption, uri = picture
    return f'<figure><img alt="{escape(caption.replace(chr(10), ", "))}" src="{uri}"><figcaption>{escape(caption)}</figcaption></figure>'
