"""Remove passwords and tokens from text that is printed, stored or sent. Fast to import."""

import logging
import os
import re
import sys
import warnings
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

MASK = "***"
# Known secrets of fewer characters are ignored; from DISTINCT on, they are masked inside words too.
SHORTEST, DISTINCT = 4, 8
WORDS = {"true", "false", "none", "null"}  # values of switches
# The names under which drivers, clouds and this package's environment take secrets
NAME = r"""(?:[\w.-]*(?:password|passwd|passphrase|passcode|pwd|token|secret|credentials?|signature
    |sslkey|(?:api|access|account|private|secret|signing|encryption)[\s_-]?key)
    |(?:[\w.-]*[_.-])?(?:pass|auth|sas|sig))"""
CLOSERS = r""")\]}>.,;:!?'"`"""  # may follow a URL or a value in a sentence
END = rf"""(?=[\s{CLOSERS}&]|$)"""
# What may follow `token: ` in a sentence without being a secret: a few characters, a word, a number
ORDINARY = rf"(?:\S{{1,5}}|(?:[^\W\d_]+|[+-]?[\d.,]+(?:e[+-]?\d+)?%?)[{CLOSERS}]{{0,3}})(?!\S)"
PAIR = re.compile(
    rf"""(?P<head>(?<![\w.-])-{{0,2}}{NAME}(?:(?P<prose>\s*:\s+)|(?!\s*:\s)\\?["']?\s*(?:=>|[:=]|%3d)\s*)
        |(?<![\w-])--{NAME}\s+)
    (?:\\(?P<escaped>["']).*?\\(?P=escaped)
    |(?P<quote>["'])(?:\\.|(?!(?P=quote){END}).)*(?:(?P=quote)|$)
    |\{{(?:\}}\}}|[^}}\n])*\}}
    |(?(prose)(?!{ORDINARY}))\S+?(?=[{CLOSERS}\\]{{0,3}}(?:\s|$)
        |(?:[;&,]|%3b)\s*[\w .-]{{1,40}}(?:=|%3d)))""",
    re.I | re.M | re.X,
)
HEADER = re.compile(
    r"""(authorization\\?["']?\s*[:=]\s*\\?["']?)(?:\w+\s+)?[^\s"'\\,]{4,}|(\bbearer\s+)[^\s"'\\,]{8,}""",
    re.I,
)
# Of Hugging Face, GitHub, Databricks and AWS; JWT
TOKEN = re.compile(r"\b(?:hf_|gh[pousr]_|dapi|AKIA|eyJ)[\w.-]{16,}")
SECRET_VARIABLE = re.compile(
    r".*(?:PASSWORD|PASSWD|_PWD|TOKEN|SECRET|CREDENTIALS?|(?:API|ACCESS|ACCOUNT)_?KEY)", re.I
)
START = re.compile(r"[A-Za-z][\w+.-]*://")
OWN_URL = re.compile(rf"(?:--[\w-]+=)?{START.pattern}")
NEXT = re.compile(r"""[\s"'<>,|;`(\[{]+[A-Za-z][\w+.-]*://""")
# And further hosts, as PostgreSQL takes them
PORT = re.compile(r"\d*(?:,(?:\[[^\]]*\]|[^:,]*)(?::\d*)?)*")

Pairs = tuple[tuple[str, str], ...]


def without_secrets(text: str) -> str:
    """A text with URLs reduced to scheme, host and path, and with passwords and tokens masked.

    Masked are values under the names that drivers use (`password=`, `PWD=`, `"token":`, …) or in
    headers, and the secrets of this process's environment and command line anywhere.
    """
    own = (*os.environ.items(), *(("", word) for word in sys.argv[1:]))
    urls, secrets = _known(tuple(pair for pair in own if _may_be_secret(*pair)))
    for url, reduced in urls:
        text = text.replace(url, reduced)
    while "://" in text and (reduced := _reduce_urls(text)) != text:
        text = reduced
    text = PAIR.sub(_mask, text)
    text = TOKEN.sub(MASK, HEADER.sub(rf"\1\2{MASK}", text))
    return secrets.sub(MASK, text) if secrets else text


def redacted(value: Any) -> Any:
    """A JSON value with `without_secrets` applied to its strings, except names of local files."""
    if isinstance(value, dict):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted, value))
    return without_secrets(value) if isinstance(value, str) and not os.path.exists(value) else value


def redact_logs() -> None:
    """Apply `without_secrets` to all logs and warnings of this process from now on."""
    create, format_warning = logging.getLogRecordFactory(), warnings.formatwarning
    if getattr(create, "redacts", False):
        return

    def create_redacted(*args: Any, **options: Any) -> logging.LogRecord:
        record = create(*args, **options)
        record.msg, record.args = without_secrets(record.getMessage()), ()
        if record.exc_info and record.exc_info[0]:
            record.exc_text = without_secrets(logging.Formatter().formatException(record.exc_info))
        return record

    create_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(create_redacted)
    warnings.formatwarning = lambda *args, **options: without_secrets(
        format_warning(*args, **options)
    )


def _mask(match: re.Match[str]) -> str:
    quote = match["quote"] or ("\\" + match["escaped"] if match["escaped"] else "")
    return f"{match['head']}{quote}{MASK}{quote}"


def _reduce_urls(text: str) -> str:
    reduced, at = "", 0
    while start := START.search(text, at):
        end = _end(text, start)
        reduced += text[at : start.start()] + _reduced(text[start.start() : end])
        at = end
    return reduced + text[at:]


def _end(text: str, start: re.Match[str]) -> int:
    """The end of a URL: its closing quote or a space, unless a password continues up to an `@`."""
    following = NEXT.search(text, start.end())
    limit = following.start() if following else len(text)
    line = text.find("\n", start.end(), limit)
    limit = limit if line < 0 else line
    space = re.compile(r"\s").search(text, start.end(), limit)
    token = space.start() if space else limit
    opened = text[start.start() - 1 : start.start()]
    closing = re.compile(rf"(?<!\\){opened}{END}" if opened in ("'", '"', "`") else r"\s")
    closings = [match.start() for match in closing.finditer(text, start.end(), limit)] or [token]
    end = closings[0]
    if "?" in text[start.end() : end]:  # a value in the query may contain the quote
        end = max(index for index in closings if index <= max(end, token))
    _, colon, port = _host(text[start.end() : end])
    at = text.find("@", end, token if port[:1].isdigit() and _is_port(port) else limit)
    if colon and at >= 0 and "@" not in port:
        end = min((index for index in closings if index > at), default=limit)
    return end


def _reduced(url: str) -> str:
    """Scheme, host and path of a URL, and up to three characters of punctuation after it."""
    scheme, _, rest = url.partition("://")
    rest = _split(rest)[1]
    host, _, port = _host(rest)
    shown = re.split(r"\?" if scheme.startswith("sqlite") else r"[?#]", rest, maxsplit=1)[0]
    shown = shown if _is_port(port) else host
    closers = re.findall(rf"[{CLOSERS.replace('?', '')}]{{0,3}}$", rest[len(shown) :])
    return f"{scheme}://{shown}{closers[0]}"


def _split(rest: str) -> tuple[str, str]:
    """The userinfo and what follows its `@`. A password may contain anything, as in SQLAlchemy.

    An `@` in a query (`?name=a@b`) does not end the userinfo.
    """
    user, colon, port = _host(rest)
    end = 0 if colon else user.rfind("@") + 1
    if colon and not user.startswith("["):
        if "@" not in port and not _is_port(port):
            end = rest.find("@") + 1
        query = re.compile(r"\?[^@?]*=").search(rest, end)
        end = max(end, rest.rfind("@", 0, query.start() if query else len(rest)) + 1)
    return rest[: max(0, end - 1)], rest[end:]


def _host(rest: str) -> tuple[str, str, str]:
    """The host, a `:` if one follows, and the rest up to the path."""
    match = re.match(r"(\[[^\]]*\]|[^:/?#]*)(:?)([^/?#]*)", rest)
    assert match
    return match[1], match[2], match[3]


def _is_port(text: str) -> bool:
    return bool(PORT.fullmatch(text.rstrip(r""")]}>.,;:!?'"`""")))


def _may_be_secret(name: str, value: str) -> bool:
    """True for URLs, and for environment variables that may hold secrets."""
    if OWN_URL.match(value) or SECRET_VARIABLE.fullmatch(name):
        return True
    return name == "MLFLOW_TRACKING_URI" and "@" in value


@lru_cache(maxsize=8)
def _known(own: Pairs) -> tuple[Pairs, re.Pattern[str] | None]:
    """URLs with their reduced forms, and a pattern of the secrets; both longest first."""
    urls, secrets = dict[str, str](), set[str]()
    for name, value in own:
        start = START.search(value)
        if SECRET_VARIABLE.fullmatch(name):
            secrets |= {value, unquote(value)}
        elif start:
            url = value[start.start() :]
            reduced = _reduced(url)
            urls |= {url: reduced} if reduced != url else {}
            secrets |= {piece for piece in _pieces(url) if piece not in reduced}
        else:  # a URL that lacks its slashes, or its scheme too
            for rest in (value, value.partition(":")[2]):
                secrets |= _pieces(f"://{rest.lstrip('/')}")
    forms = [
        re.escape(secret) if len(secret) >= DISTINCT else rf"(?<!\w){re.escape(secret)}(?!\w)"
        for secret in sorted(secrets, key=len, reverse=True)
        if len(secret) >= SHORTEST and secret.lower() not in WORDS
    ]
    longest_first = sorted(urls.items(), key=lambda pair: -len(pair[0]))
    return (*longest_first,), re.compile("|".join(forms)) if forms else None


def _pieces(url: str) -> set[str]:
    """A URL's passwords as written, decoded and encoded, whole and split as parsers do."""
    scheme, _, rest = url.partition("://")
    userinfo, rest = _split(rest)
    user, colon, password = userinfo.partition(":")
    secrets = [password if colon or not scheme.startswith("http") else user]
    _, colon, port = _host(rest)
    secrets += [port] if colon and not _is_port(port) else []
    query = parse_qsl(rest.partition("?")[2])
    secrets += [value for name, value in query if re.fullmatch(NAME, name, re.I | re.X)]
    secrets += [
        match.group()[len(match["head"]) :].strip("{}")
        for _, value in query
        for match in PAIR.finditer(value)
    ]
    forms = {*secrets, *map(unquote, secrets), *(quote(secret, safe="") for secret in secrets)}
    return forms | {piece for form in forms for piece in re.split(r"[/?#@:&=;,\s]+", form)}
