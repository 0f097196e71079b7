"""Pieces of the page in HTML; every text that comes from outside is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from app.core.catalogue import Catalogue
from app.presentation.words import (
    DASH,
    RUNGS,
    SEVERITY,
    band_words,
    day,
    decision_word,
    feature_label,
    feature_value,
    field_label,
    listed,
    milliseconds,
    moment,
    money,
    number,
    percent,
    reason_text,
    rule_text,
    sentence_case,
    status_word,
    view_label,
)

SHOWN_CONTRIBUTIONS = 10
_MARKS = {"review": "?", "decline": "✕", "contact": "!", "offer": "!!"}


def _tag(name: str, content: str, classes: str = "", **attributes: str) -> str:
    described = "".join(f' {key.replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return f'<{name} class="{classes}"{described}>{content}</{name}>'


def trouble(sentence: str) -> str:
    """Return a sentence on what went wrong, read out at once."""
    return _tag("div", escape(sentence), "notice trouble", role="alert")


def hint(sentence: str) -> str:
    """Return a quiet sentence."""
    return _tag("p", escape(sentence), "hint") if sentence else ""


def pill(decision: str, *, large: bool = False) -> str:
    """Return a decision as a mark and words: colour alone says nothing."""
    severity = SEVERITY.get(decision, 0)
    mark = _tag("span", _MARKS.get(decision, "✓"), "mark", aria_hidden="true")
    return _tag(
        "span", mark + escape(decision_word(decision)), f"pill s{severity}{' large' if large else ''}"
    )


def chips(parts: Iterable[tuple[str, str, bool]]) -> str:
    """Return small labels: name, value, and whether it is something to look at."""
    return "".join(
        _tag("span", f"{escape(name)} <b>{escape(value)}</b>", "chip warn" if odd else "chip")
        for name, value, odd in parts
    )


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return _tag("dl", "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in rows), "facts")


def _code(text: Any) -> str:
    return f"<code>{escape(str(text))}</code>"


def _short_hash(sha256: str) -> str:
    return f'<code title="{escape(sha256)}">{escape(sha256[:12])}</code>'


def degraded_notice(reply: Mapping[str, Any]) -> str:
    """Return what marks a degraded decision; nothing if all was at hand."""
    if not reply.get("degraded"):
        return ""
    rung = RUNGS.get(reply.get("rung", ""), "")
    basis = f" It rests on: {rung}." if rung and rung != RUNGS["online"] else ""
    text = f"Degraded: current features were not at hand for this decision.{basis}"
    return _tag("div", escape(text), "notice degraded", role="status")


def _items(parts: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<li>{escape(text)} {_tag('small', escape(name))}</li>" for text, name in parts)


def _origin(reply: Mapping[str, Any]) -> str:
    rung, variant = reply.get("rung", "online"), reply.get("variant", "champion")
    return chips(
        [
            ("model", f"version {reply['model']['version']}", False),
            ("part", variant, variant != "champion"),
            ("policy", f"version {reply['policy']['version']}", False),
            ("features from", RUNGS.get(rung, rung), rung != "online"),
            ("decided in", milliseconds(reply["latency_ms"]), False),
        ]
    )


def decision_card(reply: Mapping[str, Any], thresholds: Mapping[str, float]) -> str:
    """Return a decision with its reasons, rules, features' state and origin."""
    score = reply["score"]
    head = _tag("div", pill(reply["decision"], large=True), "verdict")
    said = (
        "Rules alone decided; there is no score."
        if score is None
        else f"Score {percent(score)}: the model's probability. {sentence_case(band_words(thresholds))}."
    )
    reasons = "".join(
        f"<li>{escape(reason_text(code))} {_tag('small', escape(code))}</li>"
        for code in reply["reason_codes"]
    )
    rules = (
        "".join(
            f"<li>{escape(rule_text(rule))} {_tag('small', escape(rule))}</li>"
            for rule in reply["rules_fired"]
        )
        or "<li>No rule fired; the policy's default counts.</li>"
    )
    states = chips(
        (view_label(view), word := status_word(view, status), word not in ("up to date", "nothing yet"))
        for view, status in reply["feature_status"].items()
    )
    return _tag(
        "section",
        head
        + degraded_notice(reply)
        + f"<p class='said'>{escape(said)}</p>"
        + f"<h4>Why</h4><ul class='reasons'>{reasons}</ul>"
        + f"<h4>Rules that fired</h4><ul class='rules'>{rules}</ul>"
        + f"<h4>Features</h4><div class='chips'>{states}</div>"
        + f"<h4>Decided by</h4><div class='chips'>{_origin(reply)}</div>"
        + f"<p class='id'>Decision {_code(reply['request_id'])}</p>",
        "card decision",
        aria_live="polite",
    )


def contributions(explanation: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> str:
    """Return what moved a score as bars around a middle line; the smallest ones together.

    With `other`, a second explanation, its values and bars stand below the first ones'.
    """
    parts = list(explanation["contributions"])
    others = {} if other is None else {part["feature"]: part for part in other["contributions"]}
    if other is not None:
        parts.sort(key=lambda part: -_distance(part, others.get(part["feature"])))
    shown, rest = parts[:SHOWN_CONTRIBUTIONS], parts[SHOWN_CONTRIBUTIONS:]
    everything = [*parts, *others.values()]
    largest = max((abs(part["contribution"]) for part in everything), default=0.0) or 1.0
    rows = "".join(_contribution_row(part, others.get(part["feature"]), largest) for part in shown)
    if rest and other is None:
        left = sum(part["contribution"] for part in rest)
        rows += _row(f"{len(rest)} others together", "", [(left, "")], largest)
    check = (
        "Replayed from the record to the same score."
        if explanation["reproduced"]
        else "The replay gave another score than the one recorded."
    )
    text = (
        f"Bars to the right raise the score, to the left lower it ({explanation['unit']}, from a base of "
        f"{explanation['base_value']:+.2f}). {check}"
    )
    return _tag("section", f"<div class='bars'>{rows}</div>{hint(text)}", "card")


def _distance(part: Mapping[str, Any], other: Mapping[str, Any] | None) -> float:
    return abs(float(part["contribution"]) - (0.0 if other is None else float(other["contribution"])))


def _contribution_row(part: Mapping[str, Any], other: Mapping[str, Any] | None, largest: float) -> str:
    name = part["feature"]
    values = [(part["contribution"], feature_value(name, part["value"]))]
    if other is not None:
        values.append((other["contribution"], feature_value(name, other["value"])))
    return _row(feature_label(name), part["reason_code"] or "", values, largest)


def _row(label: str, code: str, values: Sequence[tuple[float, str]], largest: float) -> str:
    title = f' title="{escape(code)}"' if code else ""
    bars = ""
    for order, (amount, value) in enumerate(values):
        width = 50 * abs(amount) / largest
        side = "up" if amount >= 0 else "down"
        bars += (
            f"<div class='pair{' second' if order else ''}'><span class='value'>{escape(value)}</span>"
            f"<span class='track' aria-hidden='true'><i class='{side}' style='width:{width:.1f}%'></i></span>"
            f"<span class='amount'>{amount:+.2f}</span></div>"
        )
    return f"<div class='bar'{title}><span class='label'>{escape(label)}</span>{bars}</div>"


def service_states(states: Iterable[tuple[str, bool, str]]) -> str:
    """Return what stands in the page's head: each service, whether it is ready, and what it says."""
    return _tag(
        "div",
        "".join(
            _tag(
                "span",
                f"<i aria-hidden='true'></i>{escape(name)} <b>{'ready' if ready else 'not ready'}</b>",
                "state on" if ready else "state off",
                title=said,
            )
            for name, ready, said in states
        ),
        "states",
        role="status",
    )


def request_words(decision: Mapping[str, Any]) -> str:
    """Say in short what was asked."""
    parts = []
    for name, value in {**decision["entity_ids"], **decision["request"]}.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            written = money(value) if "amount" in name else str(value)
            parts.append(f"{field_label(name).lower()} {written}")
        elif isinstance(value, list) and value and name != "defaulted":
            parts.append(f"{field_label(name).lower()}: {len(value)}")
    return ", ".join(parts) or DASH


def movie_list(reply: Mapping[str, Any], why: Mapping[int, Mapping[str, Any]], catalogue: Catalogue) -> str:
    """Return recommended movies, best first, each with what speaks for it; `why` is by movie."""
    reasons = _items((reason_text(code), code) for code in reply["reason_codes"])
    known = reply["viewer_rating_count"]
    extra = [f"{number(known)} movie{'' if known == 1 else 's'} of the history known to the model"]
    if reply["hidden_count"]:
        extra.append(f"{number(reply['hidden_count'])} better ones not let through by the policy")
    if reply["left_out"]:
        extra.append(f"left out, as they are in the catalogue: {listed([str(m) for m in reply['left_out']])}")
    head = (
        degraded_notice(reply)
        + f"<ul class='reasons'>{reasons}</ul>{hint(sentence_case('; '.join(extra)) + '.')}"
        + f"<div class='chips'>{_origin(reply)}</div>"
        + f"<p class='id'>Decision {_code(reply['request_id'])}</p>"
    )
    scores = [movie["score"] for movie in reply["movies"]]
    largest = max((abs(score) for score in scores), default=0.0) or 1.0
    movies = "".join(
        _movie(rank, movie, why.get(movie["movie_id"]), catalogue, largest)
        for rank, movie in enumerate(reply["movies"], start=1)
    )
    section = _tag("section", head, "card compact", aria_live="polite")
    parts = "" if not why else f"<p class='legend'>{_PARTS_LEGEND}</p>"
    return f"<div class='movies'>{section}{parts}{movies}</div>"


def _movie(
    rank: int,
    movie: Mapping[str, Any],
    why: Mapping[str, Any] | None,
    catalogue: Catalogue,
    largest: float,
) -> str:
    movie_id = movie["movie_id"]
    genres = catalogue.genres(movie_id) or (() if why is None else why["genres"])
    because = "" if why is None else because_words(why, catalogue)
    bars = _parts(movie["score"], why, largest)
    return (
        f"<div class='movie'><span class='rank'>{rank}</span><div>"
        f"<div class='title'>{escape(catalogue.label(movie_id))}</div>"
        f"<div class='why'>{escape(', '.join(genres) or 'genres unknown')}</div>"
        f"<div class='why'>{escape(because)}</div></div>"
        f"<div class='strength'><span class='track' aria-hidden='true'>{bars}</span>"
        f"<div class='score'>{movie['score']:.3f}</div></div></div>"
    )


_PARTS = ("history", "content", "popularity")
_PARTS_LEGEND = (
    "What a score is made of: <span><i class='key history'></i> liked by viewers with such a history,</span> "
    "<span><i class='key content'></i> genres and age,</span> "
    "<span><i class='key popularity'></i> popularity.</span>"
)


def _parts(score: float, why: Mapping[str, Any] | None, largest: float) -> str:
    """Return a score as one bar, or as one of its positive parts."""
    parts = {"history": score} if why is None else {name: why[name] for name in _PARTS}
    positive = {name: max(part, 0.0) for name, part in parts.items()}
    scale = 100 * max(score, 0.0) / largest / (sum(positive.values()) or 1.0)
    return "".join(
        f"<i class='{name}' style='width:{part * scale:.1f}%'></i>" for name, part in positive.items()
    )


def because_words(why: Mapping[str, Any], catalogue: Catalogue) -> str:
    """Say what speaks most for a movie."""
    near = [catalogue.label(one["movie_id"]) for one in why["because_of"] if one["contribution"] > 0][:3]
    if near:
        return f"Because of {listed(near)}."
    if why["content"] > max(why["popularity"], 0.0):
        return "Its genres and age fit the taste."
    return "Many like it." if why["popularity"] > 0 else "Little speaks for it."


def replayed_list(explanation: Mapping[str, Any], catalogue: Catalogue) -> str:
    """Return a list as it was replayed from its record."""
    same = explanation["reproduced"]
    text = "Replayed to the same movies in the same order." if same else "The replay gave another list!"
    rows = [
        [
            str(rank),
            catalogue.label(movie["movie_id"]),
            f"{movie['score']:.3f}",
            because_words(movie, catalogue),
        ]
        for rank, movie in enumerate(explanation["movies"], start=1)
    ]
    notice = _tag("div", escape(text), "notice good" if same else "notice trouble", role="status")
    return notice + _tag("section", table(["", "Movie", "Score", "Why"], rows), "card")


def record(document: Mapping[str, Any]) -> str:
    """Return a recorded decision with everything it rested on."""
    facts = [
        ("Decision", pill(document["decision"])),
        ("Score", percent(document["score"], 2)),
        ("Decided at", moment(document["requested_at"])),
        ("Asked", escape(request_words(document))),
        ("Why", "<br>".join(escape(reason_text(code)) for code in document["reason_codes"])),
        ("Rules", "<br>".join(escape(rule_text(rule)) for rule in document["rules_fired"]) or DASH),
        ("Model", f"{escape(document['model_name'])}, version {document['model_version']}, bundle "
                  f"{_short_hash(document['bundle_sha256'])}"),
        ("Policy", f"version {document['policy_version']}, {_short_hash(document['policy_sha256'])}"),
        ("Features from", escape(RUNGS.get(document.get("rung", "online"), str(document.get("rung"))))),
        ("Part", escape(str(document.get("variant", "champion")))),
        ("Took", milliseconds(document["latency_ms"])),
        ("Id", _code(document["request_id"])),
    ]  # fmt: skip
    features = table(
        ["Feature", "Value"],
        [[feature_label(name), feature_value(name, value)] for name, value in document["features"].items()],
    )
    views = table(
        ["View", "State", "As of"],
        [
            [view_label(view), status_word(view, state["status"]), moment(state["event_timestamp"])]
            for view, state in document["feature_status"].items()
        ],
    )
    return _tag(
        "section",
        degraded_notice(document)
        + _facts(facts)
        + f"<details><summary>The {len(document['features'])} features it rested on</summary>"
        + f"{features}{views}</details>",
        "card",
    )


def replay(explanation: Mapping[str, Any]) -> str:
    """Return whether a decision replayed to the same score, and by the same policy to the same verdict."""
    same = explanation["reproduced"]
    text = f"Recorded {explanation['recorded_score']:.6f}, replayed {explanation['replayed_score']:.6f}: "
    text += "the same score." if same else "not the same score!"
    verdict = explanation.get("decision_reproduced")
    if verdict is not None:
        text += (
            " The policy gives the same decision, reasons and rules."
            if verdict
            else f" The policy now gives “{explanation.get('replayed_decision')}”!"
        )
    good = same and verdict is not False
    return _tag("div", escape(text), "notice good" if good else "notice trouble", role="status")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts."""
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def model_card(label: str, document: Mapping[str, Any]) -> str:
    """Return what is in service."""
    training = document["training"]
    model, policy = document["model"], document["policy"]
    holdout = (
        f"{day(training.get('holdout_start'))} to {day(training.get('holdout_end'))}"
        if training.get("holdout_start")
        else DASH
    )
    rows = f"{number(training['rows'])} rows" if "rows" in training else DASH
    if training.get("positives") is not None:
        rows += f", {number(training['positives'])} positive"
    facts = [
        ("Model", f"{escape(model['name'])}, version {model['version']} ({escape(document['model_kind'])})"),
        ("Bundle", _short_hash(model["bundle_sha256"])),
        ("In service since", moment(document["loaded_at"])),
        ("Trained on", f"{day(training.get('start'))} to {day(training.get('end'))}, {rows}"),
        ("Compared on", holdout),
        ("Thresholds", escape(band_words(document["thresholds"])) or DASH),
        ("Policy", f"{escape(policy['name'])}, version {policy['version']}, {_short_hash(policy['sha256'])}"),
        ("Features", f"{escape(document['feature_service'])}: {len(document['features'])}"),
        ("Labels", escape(_labels(document["label_policy_version"]))),
        ("Data", _short_hash(document["data_version"])),
        ("Commit", _short_hash(document["git_commit"])),
        ("Service", f"{escape(document['service'])} {escape(document['service_version'])}"),
    ]
    facts += [(name, said) for name, said in rollout_facts(document.get("rollout"))]
    known = {
        "service", "service_version", "model", "model_kind", "feature_service", "features", "thresholds",
        "label_policy_version", "training", "git_commit", "data_version", "policy", "loaded_at", "rollout",
    }  # fmt: skip
    facts += [(sentence_case(name), _said(value)) for name, value in document.items() if name not in known]
    return _tag("section", f"<h3>{escape(label)}</h3>{_facts(facts)}", "card model")


def rollout_facts(rollout: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what is rolled out beside the champion, and what is said of it."""
    parts = {name: part for name, part in (rollout or {}).items() if part is not None}
    if not parts:
        return [("Rollout", "champion alone")]
    return [(sentence_case(name), _said(part)) for name, part in parts.items()]


def _labels(version: int | str) -> str:
    return f"policy version {version}" if str(version).isdigit() else str(version)


def _said(value: Any) -> str:
    """Return a part of a reply that this page has no words of its own for."""
    if value is None:
        return DASH
    if isinstance(value, Mapping):
        return "<br>".join(
            f"{escape(sentence_case(str(name)))}: {_said(part)}" for name, part in value.items()
        )
    if isinstance(value, bool | int | float | str):
        return escape(str(value))
    return _code(json.dumps(value))


def heading(text: str) -> str:
    """Return the heading of a part."""
    return f"<h3>{escape(text)}</h3>"


def legend(first: str, second: str) -> str:
    """Return which of two bars is whose."""
    return (
        f"<p class='legend'>Above: <b>{escape(first)}</b>. Below, paler: <b>{escape(second)}</b>. "
        "What differs most comes first.</p>"
    )
