from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from common_service_libs.base_api_config import BaseApiConfig
from common_service_libs.errors import Unauthenticated
from common_service_libs.security import jwt_tokens
from common_service_libs.security.jwt_tokens import TokenVerifier, read_jwks

ISSUER, AUDIENCE = "https://issuer.test", "services"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
JWK = jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True) | {"kid": "one"}


def write(path: Path, *keys: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


def token(**claims: Any) -> str:
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "someone@example.test", "exp": time.time() + 300}
    return jwt.encode(payload | {"scope": "a b"} | claims, KEY, "RS256", {"kid": "one"})


@pytest.fixture
def verifier(tmp_path: Path) -> TokenVerifier:
    return TokenVerifier(write(tmp_path / "jwks.json", JWK), ISSUER, AUDIENCE)


def test_a_token_stands_for_a_client_whose_name_tells_nobody(verifier: TokenVerifier) -> None:
    client = verifier.verify(token(scp=["c", 1]))
    assert client.scopes == {"a", "b", "c"}
    assert "example" not in client.name
    assert verifier.verify(token(jti="2")).name == client.name != verifier.verify(token(sub="y")).name


def test_a_token_is_verified_once_and_still_ends(
    verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = token()
    client = verifier.verify(sent)
    monkeypatch.setattr(jwt_tokens.jwt, "decode", lambda *a, **k: pytest.fail("verified again"))
    assert verifier.verify(sent) is client
    monkeypatch.undo()
    later = time.time() + 300 + jwt_tokens.LEEWAY_SECONDS
    monkeypatch.setattr(jwt_tokens.time, "time", lambda: later)

    def expired(*_: object, **__: object) -> None:
        raise jwt.ExpiredSignatureError

    monkeypatch.setattr(jwt_tokens.jwt, "decode", expired)
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify(sent)


def test_what_is_remembered_is_bounded(verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_tokens, "MAX_CACHED", 3)
    for number in range(6):
        verifier.verify(token(jti=str(number)))
    assert len(verifier._verified) == 3


def test_a_key_taken_out_of_the_file_vouches_for_nothing_any_more(
    verifier: TokenVerifier, tmp_path: Path
) -> None:
    sent, path = token(), tmp_path / "jwks.json"
    verifier.verify(sent)
    path.write_text("{")
    os.utime(path, ns=(1, 1))
    verifier.reload()
    verifier.verify(sent)
    write(path, JWK | {"kid": "two"})
    os.utime(path, ns=(2, 2))
    verifier.reload()
    with pytest.raises(Unauthenticated, match="no key that is known"):
        verifier.verify(sent)


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"exp": time.time() - 31}, "expired"),
        ({"nbf": time.time() + 86_400}, "not valid yet"),
        ({"aud": "x"}, "audience"),
        ({"iss": "x"}, "issuer"),
        ({"exp": "soon"}, "not valid"),
        ({"sub": 7}, "not valid"),
    ],
)
def test_a_refusal_says_why_and_repeats_nothing(
    verifier: TokenVerifier, claims: dict[str, Any], said: str
) -> None:
    sent = token(**claims)
    with pytest.raises(Unauthenticated, match=said) as caught:
        verifier.verify(sent)
    assert sent not in caught.value.detail
    assert "invalid_token" in caught.value.challenge


@pytest.mark.parametrize("sent", ["", ".", "..", "a.b.c", "é" * 10, "x" * 9000, token()[:-4], token() + "x"])
def test_what_is_no_token_is_refused(verifier: TokenVerifier, sent: str) -> None:
    with pytest.raises(Unauthenticated):
        verifier.verify(sent)


SECRET = {"kty": "oct", "kid": "s", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}
PRIVATE = jwt.algorithms.RSAAlgorithm.to_jwk(KEY, as_dict=True) | {"kid": "p"}
SMALL = jwt.algorithms.RSAAlgorithm.to_jwk(
    rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), as_dict=True
) | {"kid": "small"}


@pytest.mark.parametrize(
    "keys",
    [(SECRET,), (PRIVATE,), (SMALL,), (JWK, JWK), ({"kty": "RSA", "kid": "x"},), ({**JWK, "kid": ""},)],
    ids=["shared secret", "private key", "small key", "same kid", "half a key", "no kid"],
)
def test_a_file_with_a_key_that_must_not_be_used_is_refused(
    tmp_path: Path, keys: tuple[dict[str, Any], ...]
) -> None:
    with pytest.raises(ValueError, match="key"):
        read_jwks(write(tmp_path / "jwks.json", *keys))


def test_keys_for_encryption_are_left_out(tmp_path: Path) -> None:
    assert set(read_jwks(write(tmp_path / "j", JWK, JWK | {"kid": "e", "use": "enc"}))) == {"one"}


def test_tokens_need_an_issuer_and_an_audience(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "decisions_db_password": "", "mlflow_tracking_uri": "x", "spool_dir": tmp_path, "service_name": "s",
        "service_port": 1, "api_keys_file": tmp_path, "model_name": "m", "policy_file": tmp_path,
        "jwks_file": tmp_path,
    }  # fmt: skip
    with pytest.raises(ValueError, match="JWT_AUDIENCE"):
        BaseApiConfig(**given, jwt_issuer="i")
    assert BaseApiConfig(**given, jwt_issuer="i", jwt_audience="a").jwks_file == tmp_path
