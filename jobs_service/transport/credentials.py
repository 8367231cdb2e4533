"""What calls are authenticated with, made of the settings: token keys, certificates, and their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs_service.config import Config, ConfigError
from jobs_service.transport.jwks import parse_jwks
from jobs_service.transport.key_files import KeyFiles
from jobs_service.transport.tls import Tls
from jobs_service.transport.token_verifier import TokenVerifier
from jobs_service.transport.tokens import TokenKey, UnusableKey, development_key, parse_key, read_file


@dataclass(frozen=True, slots=True)
class Credentials:
    """Loaded and usable. tls: None without certificates. files: all that has to be watched."""

    verifier: TokenVerifier
    tls: Tls | None
    files: list[KeyFiles]


def load_credentials(config: Config) -> Credentials:
    """Read every file of keys and certificates. Raises ConfigError."""
    # Those of a file come with the file.
    keys = token_keys(config) if config.uses_development_key else []
    verifier = TokenVerifier(
        *keys,
        issuer=config.jwt_issuer,
        audience=config.jwt_audience,
        leeway=config.jwt_leeway,
    )
    tls = load_tls(config)
    token_files = [_token_files(path, verifier, jwks=jwks) for path, jwks in _token_paths(config)]
    try:
        for group in token_files:
            group.load()
    except UnusableKey as error:
        raise ConfigError(str(error)) from None
    return Credentials(verifier, tls, [*(tls.files if tls else ()), *token_files])


def token_keys(config: Config) -> list[TokenKey]:
    """Return the keys that tokens are checked with. Raises ConfigError."""
    if config.uses_development_key and not config.embedded:
        raise ConfigError("JOBS_JWT_KEY_FILE is not set: the development key is for the embedded Postgres")
    try:
        for path, jwks in _token_paths(config):
            return _parsed(path, read_file(path), jwks=jwks)
        return [development_key(config.data_dir)]
    except UnusableKey as error:
        raise ConfigError(str(error)) from None


def load_tls(config: Config) -> Tls | None:
    """Return the certificates, None where TLS is not asked for. Raises ConfigError."""
    if config.tls_cert_file is None or config.tls_key_file is None:
        return None
    try:
        return Tls(config.tls_cert_file, config.tls_key_file, config.tls_client_ca_file)
    except UnusableKey as error:
        raise ConfigError(f"TLS is not possible: {error}") from None


def _token_paths(config: Config) -> list[tuple[Path, bool]]:
    """The file of token keys, and whether it is a JWKS; nothing where the development key is used."""
    paths = ((config.jwt_key_file, False), (config.jwt_jwks_file, True))
    return [(path, jwks) for path, jwks in paths if path is not None]


def _parsed(path: Path, content: bytes, *, jwks: bool) -> list[TokenKey]:
    return parse_jwks(path, content) if jwks else [parse_key(path, content)]


def _token_files(path: Path, verifier: TokenVerifier, *, jwks: bool) -> KeyFiles:
    has_public = False

    def take(contents: Sequence[bytes]) -> dict[str, object]:
        nonlocal has_public
        keys = _parsed(path, contents[0], jwks=jwks)
        is_secret = any(key.algorithm == "HS256" for key in keys)
        # A public key whose form is not known would be one, and everybody could sign.
        if has_public and is_secret:
            raise UnusableKey(f"{path} held a public key and now a secret: that needs a restart")
        has_public = not is_secret
        verifier.use(*keys)
        return {"keys": [{"kid": key.kid, "algorithm": key.algorithm} for key in keys]}

    return KeyFiles("the keys of tokens", [path], take)
