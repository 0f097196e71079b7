"""50,000 bodies that are almost right, and random ones, at a real server: no 5xx, no hang, memory flat.

Run: `PYTHONPATH=.:tests python -m faults.mutated_bodies --scale full`.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from service_testkit import KEY

from faults.served_app import BODIES, ServedApp, command_line, result

BODIES_OF_A_SERVICE = {"small": 400, "full": 50_000}
SERVICES = {"small": ("fraud_detection_api",), "full": tuple(BODIES)}
ANSWER_SECONDS = 5.0
CONNECTIONS = 4
GROWTH_BYTES = 24 << 20  # what one run of the allocator's arenas may take
ODD: tuple[Any, ...] = (
    None, True, "", "x" * 300, "\x00", "\ud7ff", "𝕏" * 50, -1, 0, 2**31, 2**63, 2**64, 10**300, -(2**63),
    1e308, 5e-324, -0.0, [], {}, [[]], [1] * 50, {"a": {"b": {}}}, "596", "NaN", "2026-01-31",
    "2026-13-41T25:61:61Z", "9999-12-31T23:59:60+23:59", "__proto__", "' or 1=1 --", "${jndi:ldap://x}",
)  # fmt: skip
TOKENS = (
    b"NaN", b"Infinity", b"-", b"1e999", b"\\u0000", b"\\ud800", b"{", b"[", b"]", b"}", b",", b":", b'"',
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"//", b"/*", b"'", b"0x1", b"01", b"9" * 400,
)  # fmt: skip


def flip_bytes(rng: random.Random, body: bytes) -> bytes:
    mutated = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        mutated[rng.randrange(len(mutated))] = rng.randrange(256)
    return bytes(mutated)


def truncate(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body))]


def repeat_a_part(rng: random.Random, body: bytes) -> bytes:
    begin = rng.randrange(len(body))
    return body[:begin] + body[begin : begin + rng.randint(1, 40)] * rng.randint(2, 6) + body[begin:]


def insert_a_token(rng: random.Random, body: bytes) -> bytes:
    place = rng.randrange(len(body) + 1)
    return body[:place] + rng.choice(TOKENS) + body[place:]


def change_a_value(rng: random.Random, body: bytes) -> bytes:
    document = json.loads(body)
    document[rng.choice(list(document))] = rng.choice(ODD)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def change_the_fields(rng: random.Random, body: bytes) -> bytes:
    document = json.loads(body)
    if rng.random() < 0.5:
        document.pop(rng.choice(list(document)))
    else:
        document[rng.choice(["", "a", "customer_id ", "Customer_Id", "é", "\x00", "k" * 500])] = rng.choice(
            ODD
        )
    return json.dumps(document).encode()


def name_a_key_twice(rng: random.Random, body: bytes) -> bytes:
    document = json.loads(body)
    name = rng.choice(list(document))
    return body[:-1] + b", " + json.dumps({name: rng.choice(ODD)}).encode()[1:]


def nest(rng: random.Random, body: bytes) -> bytes:
    depth = rng.choice([2, 8, 9, 100, 5000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return opening * depth + body + closing * (depth if rng.random() < 0.7 else depth - 1)


def random_text(rng: random.Random, body: bytes) -> bytes:
    text = "".join(
        chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)])) for _ in range(rng.randrange(200))
    )
    return text.encode("utf-8", "surrogatepass")


def random_bytes(rng: random.Random, body: bytes) -> bytes:
    return rng.randbytes(rng.randrange(400))


def pad(rng: random.Random, body: bytes) -> bytes:
    """Around the largest size that is read, and far beyond."""
    return body + b" " * rng.choice([1000, 16_384 - len(body), 16_385 - len(body), 70_000, 200_000])


def leave(rng: random.Random, body: bytes) -> bytes:
    return body


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_bytes, truncate, repeat_a_part, insert_a_token, change_a_value, change_the_fields, name_a_key_twice,
    nest, random_text, random_bytes, pad, leave,
)  # fmt: skip
ALLOWED = frozenset({200, 400, 413, 422})


async def _send(app: ServedApp, path: str, bodies: list[bytes], seen: Counter[Any]) -> None:
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=CONNECTIONS)
    queue = iter(bodies)

    async with httpx.AsyncClient(
        base_url=app.url, headers=headers, limits=limits, timeout=ANSWER_SECONDS
    ) as http:

        async def worker() -> None:
            for body in queue:
                try:
                    response = await http.post(path, content=body)
                except httpx.TimeoutException:
                    seen["hang"] += 1
                    continue
                seen[response.status_code] += 1
                if response.status_code not in ALLOWED:
                    seen["unexpected"] += 1
                    print(response.status_code, body[:200], response.text[:200])
                elif response.status_code != 200:
                    document = response.json()
                    right = response.headers["content-type"] == "application/problem+json"
                    if not right or document["status"] != response.status_code:
                        seen["not a problem document"] += 1

        await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


def bombard(app: ServedApp, count: int, seed: int) -> tuple[Counter[Any], int]:
    """Send `count` bodies; return what came back and by how many bytes the process grew after its warm-up."""
    path, document = BODIES[app.service]
    body, rng = json.dumps(document).encode(), random.Random(seed)
    seen: Counter[Any] = Counter()

    def bodies(number: int) -> list[bytes]:
        made = []
        for _ in range(number):
            mutated = rng.choice(MUTATIONS)(rng, body)
            made.append(
                rng.choice(MUTATIONS)(rng, mutated) if rng.random() < 0.2 and _is_object(mutated) else mutated
            )
        return made

    warm_up = max(count // 5, 100)
    asyncio.run(_send(app, path, bodies(warm_up), seen))
    before = app.resident_bytes()
    for begin in range(warm_up, count, 5000):
        asyncio.run(_send(app, path, bodies(min(5000, count - begin)), seen))
    return seen, app.resident_bytes() - before


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict) and len(json.loads(body)) > 0
    except (ValueError, RecursionError):
        return False


def run(scale: str) -> dict[str, Any]:
    """Return what was measured, service by service."""
    results = []
    for service in SERVICES[scale]:
        with tempfile.TemporaryDirectory() as folder, ServedApp(service, Path(folder)) as app:
            began = time.monotonic()
            seen, growth = bombard(app, BODIES_OF_A_SERVICE[scale], seed=20261121)
            seconds = time.monotonic() - began
            answered = sum(count for status, count in seen.items() if isinstance(status, int))
            with httpx.Client(base_url=app.url, headers={"X-API-Key": KEY}) as http:
                path, body = BODIES[service]
                alive = http.post(path, json=body).status_code == 200
        wrong = seen["unexpected"] + seen["not a problem document"]
        print(service, dict(seen), f"{seconds:.0f} s")
        count, kinds = BODIES_OF_A_SERVICE[scale], len(ALLOWED & set(seen))
        grown = round(growth / 2**20, 1)
        results += [
            result(f"{service}: mutated bodies answered", answered, "bodies", count, met=answered == count),
            result(f"{service}: 5xx and undocumented replies", wrong, "replies", 0, met=wrong == 0),
            result(f"{service}: no answer within 5 s", seen["hang"], "bodies", 0, met=seen["hang"] == 0),
            result(f"{service}: kinds of answers", kinds, "kinds", 4, met=kinds == 4),
            result(f"{service}: growth after warm-up", grown, "MiB", 24, met=growth <= GROWTH_BYTES),
            result(f"{service}: decides afterwards", int(alive), "yes", 1, met=alive),
        ]
    return {"results": results}


if __name__ == "__main__":
    command_line(__doc__ or "", run)
