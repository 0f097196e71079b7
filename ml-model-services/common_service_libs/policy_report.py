"""A backtest as one page that needs nothing from elsewhere: figures, plots, every decision that flips."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

OLD, NEW = "#7a8896", "#2563a8"
WIDTH, LABEL = 880, 210
MOST_BARS = 24

STYLE = """
:root { color-scheme: light; --old: #7a8896; --new: #2563a8; --line: #d9dee4; --soft: #f4f6f8; }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; margin: 0 auto; padding: 24px;
  max-width: 1180px }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 32px 0 8px }
p.sub { color: #55626f; margin: 0 0 16px } code { font-size: 13px; background: var(--soft); padding: 1px 4px }
.banner { padding: 10px 14px; border-left: 5px solid; margin: 14px 0; background: var(--soft) }
.good { border-color: #2d8659 } .bad { border-color: #c0392b; background: #fdf1ef }
.note { border-color: #c98a14 }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin: 16px 0 }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px }
.card b { display: block; font-size: 24px; font-variant-numeric: tabular-nums } .card span { color: #55626f }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 5px 9px; border-bottom: 1px solid var(--line);
  vertical-align: top }
th { background: var(--soft); position: sticky; top: 0 } td.n, th.n { text-align: right }
.key i { display: inline-block; width: 12px; height: 12px; margin: 0 5px 0 14px; border-radius: 2px }
.scroll { overflow-x: auto } svg { width: 100%; height: auto; display: block }
svg text { font: 12px system-ui, sans-serif; fill: #1c2733 } svg .axis { stroke: var(--line) }
.pager { display: flex; gap: 8px; align-items: center; margin: 10px 0; flex-wrap: wrap }
button, input, select { font: inherit; padding: 4px 10px; border: 1px solid #b8c2cc;
  border-radius: 4px; background: #fff }
button:disabled { opacity: .4 } .up { color: #a83226 } .down { color: #2d8659 } small { color: #55626f }
"""

SCRIPT = """
const flips = JSON.parse(document.getElementById('flips').textContent);
const body = document.querySelector('#rows'), where = document.querySelector('#where');
const search = document.querySelector('#search'), kind = document.querySelector('#kind');
const size = 50; let page = 0, shown = flips;
const text = flips.map(f => JSON.stringify(f).toLowerCase());
const cell = (row, value, cls) => {
  const td = row.insertCell(); td.textContent = value; if (cls) td.className = cls;
};
const list = (o) => Object.entries(o).map(([k, v]) => k + ' ' + v).join(', ');
function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / size));
  page = Math.min(Math.max(page, 0), pages - 1);
  body.replaceChildren();
  for (const f of shown.slice(page * size, page * size + size)) {
    const row = body.insertRow();
    cell(row, f.request_id); cell(row, f.requested_at.slice(0, 19).replace('T', ' '));
    cell(row, list(f.entity_ids)); cell(row, list(f.request));
    cell(row, f.score === null ? '' : f.score.toFixed(4), 'n');
    cell(row, f.old.decision); cell(row, f.new.decision);
    cell(row, f.rules_gained.map(r => '+' + r).concat(f.rules_lost.map(r => '-' + r)).join(' '));
    cell(row, f.new.reason_codes.join(', '));
    cell(row, f.label === null ? '?' : f.label ? 'positive' : 'negative');
    const change = f.cost_change;
    cell(row, change === null ? '' : (change > 0 ? '+' : '') + change.toFixed(2),
         'n ' + (change > 0 ? 'up' : change < 0 ? 'down' : ''));
  }
  where.textContent = shown.length + ' of ' + flips.length + ' flips, page ' + (page + 1) + ' of ' + pages;
  document.querySelector('#first').disabled = document.querySelector('#back').disabled = page === 0;
  document.querySelector('#next').disabled = document.querySelector('#last').disabled = page === pages - 1;
}
function filter() {
  const wanted = search.value.toLowerCase();
  shown = flips.filter((f, i) => (!kind.value || f.old.decision + ' -> ' + f.new.decision === kind.value)
                                 && text[i].includes(wanted));
  page = 0; draw();
}
const moves = {first: () => 0, back: () => page - 1, next: () => page + 1, last: () => 1e9};
for (const [id, move] of Object.entries(moves))
  document.querySelector('#' + id).onclick = () => { page = move(); draw(); };
search.oninput = filter; kind.onchange = filter; draw();
"""


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a backtest's document."""
    new, old = report["new"], report["old"]
    policy = report["new_policy"]
    days = report["days"]
    title = f"{report['service']}: policy {policy['name']} version {policy['version']} on logged decisions"
    parts = [
        f"<h1>{_e(title)}</h1>",
        f'<p class="sub">{report["records"]:,} decisions, {_e(days[0])} to {_e(days[-1])} ({len(days)} days);'
        f" policy <code>{policy['sha256'][:12]}</code>; {_e(report['date'])}; "
        f"<code>{_e(report['command'])}</code></p>",
        _verification(report),
        *_notes(report),
        _cards(report),
        '<p class="key"><i style="background:var(--old)"></i>as decided'
        '<i style="background:var(--new)"></i>under the new policy</p>',
        "<h2>Side by side</h2>",
        _side_by_side(report),
        "<h2>Decisions by kind</h2>",
        _bars(report["decision_order"], old["decisions"], new["decisions"], keep_order=True),
        "<h2>Alerts a day</h2>",
        _lines(days, old["alerts_by_day"], new["alerts_by_day"]),
        "<h2>Rule hits</h2>",
        _bars([*old["rule_hits"], *new["rule_hits"]], old["rule_hits"], new["rule_hits"]),
        "<h2>Decisions that flip</h2>",
        _flips(report),
    ]
    flips = json.dumps(report["flips"], ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        + "\n".join(parts)
        + f'<script type="application/json" id="flips">{flips}</script>'
        + f"<script>{SCRIPT}</script></body></html>\n"
    )


def _verification(report: Mapping[str, Any]) -> str:
    found = report["verification"]
    exactly = f"{found['replayed_exactly']:,}"
    if found["mismatches"]:
        rows = "".join(
            f"<li><code>{_e(one['request_id'])}</code>: recorded {_e(_verdict(one['recorded']))}, "
            f"replayed {_e(_verdict(one['replayed']))}</li>"
            for one in found["examples"][:20]
        )
        return (
            f'<div class="banner bad"><b>{found["mismatches"]:,} decisions are not reproduced by the policy '
            f"that made them.</b> What follows is to be read with care.<ul>{rows}</ul></div>"
        )
    if found["not_replayed"]:
        return (
            f'<div class="banner note"><b>{exactly} decisions are reproduced exactly, none otherwise; '
            f"{found['not_replayed']:,} could not be replayed</b>: their policy (name it with --old) or "
            "their bundle was not found.</div>"
        )
    return (
        f'<div class="banner good"><b>Replaying the recorded policies reproduces all {exactly} decisions '
        "exactly</b>: decision, reasons and rules.</div>"
    )


def _verdict(document: Mapping[str, Any]) -> str:
    return f"{document['decision']} [{', '.join(document['rules_fired'])}]"


def _notes(report: Mapping[str, Any]) -> list[str]:
    notes = []
    labels = report["labels"]
    if labels["problem"]:
        notes.append(f"Labels: {labels['problem']}. Precision and known cost are missing.")
    elif labels["labelled"] < report["records"]:
        notes.append(
            f"{labels['labelled']:,} of {report['records']:,} decisions have a matured label "
            f"({labels['frauds']:,} positive); the rest counts in expected cost only."
        )
    if report["skipped"]["records"]:
        notes.append(
            f"{report['skipped']['records']:,} decisions were left out: their bundle is not to be had."
        )
    for name, count in report["inputs_not_recorded"].items():
        notes.append(f"{name} was not recorded in {count:,} decisions and counts as null there.")
    return [f'<div class="banner note">{_e(note)}</div>' for note in notes]


def _cards(report: Mapping[str, Any]) -> str:
    old, new = report["old"], report["new"]
    cards = [
        ("decisions flip", f"{report['flipped']:,}"),
        ("alerts a day", f"{_number(old['alerts_a_day'])} → {_number(new['alerts_a_day'])}"),
        ("card precision@100", f"{_number(old['card_precision_at_100'], 3)} → "
                               f"{_number(new['card_precision_at_100'], 3)}"),
        ("expected cost", f"{_number(old['cost_expected'], 0)} → {_number(new['cost_expected'], 0)}"),
    ]  # fmt: skip
    inner = "".join(
        f'<div class="card"><b>{_e(value)}</b><span>{_e(name)}</span></div>' for name, value in cards
    )
    return f'<div class="cards">{inner}</div>'


def _side_by_side(report: Mapping[str, Any]) -> str:
    rows = [
        ("alerts (all but the mildest decision)", "alerts", 0),
        ("alerts a day", "alerts_a_day", 2),
        ("card precision@100 of the alerts, mean of the labelled days", "card_precision_at_100", 4),
        ("share of labelled alerts that were positive", "alert_precision", 4),
        ("positives stopped", "frauds_stopped", 0),
        ("positives missed", "frauds_missed", 0),
        ("false alerts", "false_alerts", 0),
        ("cost of labelled decisions", "cost_known", 2),
        ("expected cost of all decisions, by their scores", "cost_expected", 2),
    ]
    cells = "".join(
        f'<tr><td>{_e(name)}</td><td class="n">{_number(report["old"][key], digits)}</td>'
        f'<td class="n">{_number(report["new"][key], digits)}</td>'
        f'<td class="n">{_difference(report["old"][key], report["new"][key], digits)}</td></tr>'
        for name, key, digits in rows
    )
    return (
        '<table><tr><th></th><th class="n">as decided</th><th class="n">new policy</th>'
        f'<th class="n">difference</th></tr>{cells}</table>'
    )


def _bars(
    names: Sequence[str], old: Mapping[str, float], new: Mapping[str, float], *, keep_order: bool = False
) -> str:
    """Return two bars for each name, the most frequent first."""
    ordered = list(dict.fromkeys([*names, *old, *new]))
    if not keep_order:
        ordered.sort(key=lambda name: -max(old.get(name, 0), new.get(name, 0)))
    left_out = len(ordered) - MOST_BARS
    ordered = ordered[:MOST_BARS]
    if not ordered:
        return "<p>None.</p>"
    most = max(max(old.get(name, 0), new.get(name, 0)) for name in ordered) or 1
    room, step = WIDTH - LABEL - 90, 40
    rows = []
    for at, name in enumerate(ordered):
        y = at * step
        rows.append(f'<text x="{LABEL - 8}" y="{y + 22}" text-anchor="end">{_e(name)}</text>')
        for offset, side, color in ((4, old, OLD), (19, new, NEW)):
            value = side.get(name, 0)
            rows.append(
                f'<rect x="{LABEL}" y="{y + offset}" width="{max(room * value / most, 0.5):.1f}" height="13" '
                f'fill="{color}"/>'
                f'<text x="{LABEL + room * value / most + 6:.1f}" y="{y + offset + 11}">{value:,}</text>'
            )
    note = f"<p><small>{left_out} more in the JSON.</small></p>" if left_out > 0 else ""
    return f'<svg viewBox="0 0 {WIDTH} {len(ordered) * step + 4}" role="img">{"".join(rows)}</svg>{note}'


def _lines(days: Sequence[str], old: Mapping[str, int], new: Mapping[str, int]) -> str:
    """Return a line of points for each side."""
    most = max([*old.values(), *new.values(), 1])
    height, left, right, top, bottom = 240, 60, 20, 12, 34
    room, tall = WIDTH - left - right, height - top - bottom
    x = [left + (room * at / (len(days) - 1) if len(days) > 1 else room / 2) for at in range(len(days))]
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + tall * (1 - share)
        parts.append(f'<line class="axis" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(most * share, 0)}</text>'
        )
    for at in sorted({0, len(days) // 2, len(days) - 1}):
        anchor = "start" if at == 0 and len(days) > 1 else "end" if at == len(days) - 1 and at else "middle"
        parts.append(f'<text x="{x[at]:.1f}" y="{height - 10}" text-anchor="{anchor}">{_e(days[at])}</text>')
    for side, color in ((old, OLD), (new, NEW)):
        points = [(x[at], top + tall * (1 - side.get(day, 0) / most)) for at, day in enumerate(days)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(points) <= 60:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{color}"/>' for a, b in points]
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _flips(report: Mapping[str, Any]) -> str:
    if not report["flipped"]:
        return "<p>None.</p>" + _flip_table([])
    kinds = "".join(
        f"<tr><td>{_e(kind)}</td><td class='n'>{count:,}</td></tr>"
        for kind, count in report["flips_by_kind"].items()
    )
    summary = (
        f'<table style="width:auto"><tr><th>from -> to</th><th class="n">decisions</th></tr>{kinds}</table>'
    )
    return summary + _flip_table(report["flips_by_kind"])


def _flip_table(kinds: Sequence[str] | Mapping[str, int]) -> str:
    options = "".join(f"<option>{_e(kind)}</option>" for kind in kinds)
    heads = (
        "request", "arrived", "entities", "request values", "score", "decided", "new", "rules",
        "new reasons", "label", "cost change",
    )  # fmt: skip
    numeric = {"score", "cost change"}
    head = "".join(f"<th{' class=n' if name in numeric else ''}>{name}</th>" for name in heads)
    return (
        '<div class="pager"><input id="search" placeholder="search" aria-label="search">'
        f'<select id="kind" aria-label="kind"><option value="">all kinds</option>{options}</select>'
        '<button id="first">first</button><button id="back">back</button><button id="next">next</button>'
        '<button id="last">last</button><span id="where"></span></div>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody id="rows"></tbody></table></div>'
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "not known" if value is None else f"{value:,.{digits}f}"


def _difference(old: float | None, new: float | None, digits: int) -> str:
    return "" if old is None or new is None else f"{new - old:+,.{digits}f}"


def _e(value: Any) -> str:
    return html.escape(str(value))
