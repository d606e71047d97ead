"""Which of a provider's keys may have signed an ID token. Other keys, of the wrong kind or for another use, are
ignored.
"""

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from core.web import id_tokens

RSA, EC = RSAKey.generate_key(2048), ECKey.generate_key("P-256")
PUBLIC = RSAKey.generate_key(2048).as_dict(private=False)
OTHERS = {
    "an unknown curve": {"kty": "EC", "crv": "BP-256", "x": "AA", "y": "AA"},
    "another curve": ECKey.generate_key("P-384").as_dict(private=False),
    "a curve that cannot sign": {"kty": "OKP", "crv": "X448", "x": "AA"},
    "an unknown type": {"kty": "AKP"},
    "no type": {},
    "a number that is missing": {"kty": "RSA", "e": "AQAB"},
    "not an object": None,
    "another use": {**PUBLIC, "use": "enc"},
    "another algorithm": {**PUBLIC, "alg": "PS256"},
    "another operation": {**PUBLIC, "key_ops": ["encrypt"]},
    "another key": PUBLIC,
}


@pytest.mark.parametrize(("key", "alg"), [(RSA, "RS256"), (EC, "ES256")], ids=["RS256", "ES256"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_keys_of_the_provider_are_ignored(other, key, alg):
    token = jwt.encode({"alg": alg}, {"sub": "ann"}, key, algorithms=[alg])

    assert id_tokens.signed(token, {"keys": [other, key.as_dict(private=False)]}) == {"sub": "ann"}
    with pytest.raises(id_tokens.UnknownKey):
        id_tokens.signed(token, {"keys": [other]})
