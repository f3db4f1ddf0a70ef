"""Bearer tokens: shown once when they are made, and kept as hashes."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

VARIABLE = "GLYPHRUN_TOKENS"
HOW_TO_MAKE_ONE = (
    f"make one with `glyphrun token NAME --file FILE`, then serve with `--tokens FILE`, or put its line into {VARIABLE}"
)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern}):([0-9a-f]{{64}})")


class TokensError(ValueError):
    """Tokens are missing or cannot be read; the message says how to make one."""


@dataclass(frozen=True)
class KnownToken:
    """Who holds a token, and its hash."""

    name: str
    hash: str


def token_hash(token: str) -> str:
    """SHA-256: a token has 256 random bits, so a slow hash would protect nothing more."""
    return sha256(token.encode()).hexdigest()


def known_tokens(file: Path | None, environment: Mapping[str, str]) -> tuple[KnownToken, ...]:
    """The tokens of a file and of the environment. Raises TokensError for a missing file or a line of another form."""
    found: list[KnownToken] = []
    if file is not None:
        try:
            found += _parse(_text_of(file), str(file))
        except FileNotFoundError as error:
            raise TokensError(f"There is no file of tokens at {file}: {HOW_TO_MAKE_ONE}.") from error
    found += _parse(environment.get(VARIABLE, ""), VARIABLE)
    if file is not None and not found:
        raise TokensError(f"{file} holds no tokens: {HOW_TO_MAKE_ONE}.")
    return tuple(found)


def holder(known: Sequence[KnownToken], authorization: str | None) -> KnownToken | None:
    """Whose token an Authorization header bears; every hash is compared, each in constant time."""
    scheme, _, token = (authorization or "").partition(" ")
    given = token_hash(token.strip())
    matching = [one for one in known if compare_digest(one.hash, given)]
    return matching[0] if matching and scheme.lower() == "bearer" else None


def add_token(file: Path, name: str) -> str:
    """Make a token, keep its hash in a file that only its owner reads, and return the token.

    Raises TokensError for a name of other characters, or one that the file has.
    """
    if not _NAME.fullmatch(name):
        raise TokensError(
            f"{name!r} is no name of a token: use up to 64 letters, digits, dots, dashes and underscores."
        )
    text = _text_of(file) if file.exists() else ""
    if any(one.name == name for one in _parse(text, str(file))):
        raise TokensError(f"{file} has a token of {name}: take its line out, or choose another name.")
    token = f"glyphrun_{secrets.token_urlsafe(32)}"
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text + ("" if text.endswith("\n") or not text else "\n") + f"{name}:{token_hash(token)}\n")
    os.replace(aside, file)
    return token


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # some editors put a mark before the first line
    except UnicodeDecodeError as error:
        raise TokensError(f"{file} is not text in UTF-8, as a file of tokens is: {HOW_TO_MAKE_ONE}.") from error


def _parse(text: str, source: str) -> list[KnownToken]:
    found = []
    for number, line in enumerate(re.split(r"[\n,]", text), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            # The line is not quoted: somebody may have put the token itself there.
            raise TokensError(f"{source}, line {number}, is not NAME:HASH: {HOW_TO_MAKE_ONE}.")
        found.append(KnownToken(match[1], match[2]))
    return found
