"""Texts without passwords and tokens: what may be printed, kept or sent. Imports nothing that takes time."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

MASK = "***"
SHORTEST, DISTINCT = (
    4,
    8,
)  # characters of a known secret: fewer are let be; from so many on it is found inside words
WORDS = {"true", "false", "none", "null"}  # values of switches, whatever their names say
# The names under which drivers, clouds and this package's environment take secrets.
NAME = r"""(?:[\w.-]*(?:password|passwd|passphrase|passcode|pwd|token|secret|credentials?|signature|sslkey
    |(?:api|access|account|private|secret|signing|encryption)[\s_-]?key)
    |(?:[\w.-]*[_.-])?(?:pass|auth|sas|sig))"""
CLOSERS = r""")\]}>.,;:!?'"`"""  # what follows a URL or a value in a sentence
END = rf"""(?=[\s{CLOSERS}&]|$)"""
# What stands after `token: ` in a sentence and is no secret: a few characters, a word, a number.
ORDINARY = rf"(?:\S{{1,5}}|(?:[^\W\d_]+|[+-]?[\d.,]+(?:e[+-]?\d+)?%?)[{CLOSERS}]{{0,3}})(?!\S)"
PAIR = re.compile(
    rf"""(?P<head>(?<![\w.-])-{{0,2}}{NAME}(?:(?P<prose>\s*:\s+)|(?!\s*:\s)\\?["']?\s*(?:=>|[:=]|%3d)\s*)
        |(?<![\w-])--{NAME}\s+)
    (?:\\(?P<escaped>["']).*?\\(?P=escaped)
    |(?P<quote>["'])(?:\\.|(?!(?P=quote){END}).)*(?:(?P=quote)|$)
    |\{{(?:\}}\}}|[^}}\n])*\}}
    |(?(prose)(?!{ORDINARY}))\S+?(?=[{CLOSERS}\\]{{0,3}}(?:\s|$)|(?:[;&,]|%3b)\s*[\w .-]{{1,40}}(?:=|%3d)))""",
    re.I | re.M | re.X,
)
HEADER = re.compile(
    r"""(authorization\\?["']?\s*[:=]\s*\\?["']?)(?:\w+\s+)?[^\s"'\\,]{4,}|(\bbearer\s+)[^\s"'\\,]{8,}""",
    re.I,
)
TOKEN = re.compile(
    r"\b(?:hf_|gh[pousr]_|dapi|AKIA|eyJ)[\w.-]{16,}"
)  # of Hugging Face, GitHub, Databricks, AWS; JWT
SECRET_VARIABLE = re.compile(
    r".*(?:PASSWORD|PASSWD|_PWD|TOKEN|SECRET|CREDENTIALS?|(?:API|ACCESS|ACCOUNT)_?KEY)", re.I
)
START = re.compile(r"[A-Za-z][\w+.-]*://")
OWN_URL = re.compile(rf"(?:--[\w-]+=)?{START.pattern}")
NEXT = re.compile(r"""[\s"'<>,|;`(\[{]+[A-Za-z][\w+.-]*://""")
PORT = re.compile(
    r"\d*(?:,(?:\[[^\]]*\]|[^:,]*)(?::\d*)?)*"
)  # and further hosts, as PostgreSQL takes them


def without_secrets(text: str) -> str:
    """A text in which URLs are scheme, host and path alone, and passwords and tokens are masked.

    These are what stands under a name that drivers use (`password=`, `PWD=`, `"token":`, …), in headers, and the
    secrets of this process's own environment and command line, wherever they stand.
    """
    urls, secrets = _known(tuple(_own_secrets()))
    for url, shown in urls:
        text = text.replace(url, shown)
    while "://" in text and (shown := _reduce_urls(text)) != text:
        text = shown
    text = PAIR.sub(_mask, text)
    text = TOKEN.sub(MASK, HEADER.sub(rf"\1\2{MASK}", text))
    return secrets.sub(MASK, text) if secrets else text


def redacted(value: Any) -> Any:
    """A JSON value whose texts are `without_secrets`; the name of a file that is here stays."""
    if isinstance(value, dict):
        return {name: redacted(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted, value))
    return without_secrets(value) if isinstance(value, str) and not os.path.exists(value) else value


def redact_logs() -> None:
    """From here on every record of `logging` and every warning of this process is `without_secrets`."""
    make, format_warning = logging.getLogRecordFactory(), warnings.formatwarning
    if getattr(make, "redacts", False):
        return

    def record(*args: Any, **options: Any) -> logging.LogRecord:
        made = make(*args, **options)
        made.msg, made.args = without_secrets(made.getMessage()), ()
        if made.exc_info and made.exc_info[0]:
            made.exc_text = without_secrets(logging.Formatter().formatException(made.exc_info))
        return made

    record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    warnings.formatwarning = lambda *args, **options: without_secrets(
        format_warning(*args, **options)
    )


def _mask(found: re.Match[str]) -> str:
    around = found["quote"] or ("\\" + found["escaped"] if found["escaped"] else "")
    return f"{found['head']}{around}{MASK}{around}"


def _reduce_urls(text: str) -> str:
    parts, at = [], 0
    while start := START.search(text, at):
        end = _end(text, start)
        parts += [text[at : start.start()], _reduced(text[start.start() : end])]
        at = end
    return "".join([*parts, text[at:]])


def _end(text: str, start: re.Match[str]) -> int:
    """Where a URL ends: at its closing quote or a space, unless a password goes on behind that, up to an `@`."""
    following = NEXT.search(text, start.end())
    limit = following.start() if following else len(text)
    line = text.find("\n", start.end(), limit)
    limit = limit if line < 0 else line
    space = re.compile(r"\s").search(text, start.end(), limit)
    token = space.start() if space else limit
    opened = text[start.start() - 1 : start.start()]
    closing = re.compile(rf"(?<!\\){opened}{END}" if opened in ("'", '"', "`") else r"\s")
    closings = [found.start() for found in closing.finditer(text, start.end(), limit)] or [token]
    end = closings[0]
    if "?" in text[start.end() : end]:  # a value in the query may hold the quote
        end = max(each for each in closings if each <= max(end, token))
    _, colon, port = _host(text[start.end() : end])
    at = text.find("@", end, token if port[:1].isdigit() and _is_port(port) else limit)
    if colon and at >= 0 and "@" not in port:
        end = min((each for each in closings if each > at), default=limit)
    return end


def _reduced(url: str) -> str:
    """Scheme, host and path of a URL, and up to three characters of the sentence that follow it."""
    scheme, _, rest = url.partition("://")
    rest = _split(rest)[1]
    host, _, port = _host(rest)
    shown = re.split(r"\?" if scheme.startswith("sqlite") else r"[?#]", rest, maxsplit=1)[0]
    shown = shown if _is_port(port) else host
    closers = re.search(rf"[{CLOSERS.replace('?', '')}]{{0,3}}$", rest[len(shown) :])
    return f"{scheme}://{shown}{closers.group() if closers else ''}"


def _split(rest: str) -> tuple[str, str]:
    """The userinfo and what follows its `@`. A password may hold anything: SQLAlchemy takes it so, and people type it.

    An `@` in a query that is one (`?name=a@b`) ends no userinfo.
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
    """The host, `:` where one follows it, and what there is behind that up to the path."""
    found = re.match(r"(\[[^\]]*\]|[^:/?#]*)(:?)([^/?#]*)", rest)
    assert found
    return found[1], found[2], found[3]


def _is_port(text: str) -> bool:
    return bool(PORT.fullmatch(text.rstrip(r""")]}>.,;:!?'"`""")))


def _own_secrets() -> Iterable[tuple[str, str]]:
    """(name, value) of the environment's variables that may hold secrets, and of the command line's URLs."""
    for name, value in (*os.environ.items(), *(("", word) for word in sys.argv[1:])):
        if (
            OWN_URL.match(value)
            or SECRET_VARIABLE.fullmatch(name)
            or (name == "MLFLOW_TRACKING_URI" and "@" in value)
        ):
            yield name, value


@lru_cache(maxsize=8)
def _known(
    own: tuple[tuple[str, str], ...],
) -> tuple[list[tuple[str, str]], re.Pattern[str] | None]:
    """URLs with what to show instead, and a pattern of the secrets; both the longest first."""
    urls, secrets = dict[str, str](), set[str]()
    for name, value in own:
        start = START.search(value)
        if SECRET_VARIABLE.fullmatch(name):
            secrets |= {value, unquote(value)}
        elif start:
            url = value[start.start() :]
            shown = _reduced(url)
            urls |= {url: shown} if shown != url else {}
            secrets |= {each for each in _pieces(url) if each not in shown}
        else:  # a URL that lacks its slashes, or its scheme too
            secrets |= {
                each
                for rest in (value, value.partition(":")[2])
                for each in _pieces(f"://{rest.lstrip('/')}")
            }
    found = sorted(
        (each for each in secrets if len(each) >= SHORTEST and each.lower() not in WORDS), key=len
    )
    forms = [
        re.escape(each) if len(each) >= DISTINCT else rf"(?<!\w){re.escape(each)}(?!\w)"
        for each in found
    ]
    return sorted(urls.items(), key=lambda pair: -len(pair[0])), re.compile(
        "|".join(forms[::-1])
    ) if forms else None


def _pieces(url: str) -> set[str]:
    """A URL's password, as written, decoded and encoded, whole and in the pieces that parsers make of it."""
    scheme, _, rest = url.partition("://")
    userinfo, rest = _split(rest)
    user, colon, password = userinfo.partition(":")
    held = [password if colon or not scheme.startswith("http") else user]
    _, colon, port = _host(rest)
    held += [port] if colon and not _is_port(port) else []
    query = parse_qsl(rest.partition("?")[2])
    held += [value for name, value in query if re.fullmatch(NAME, name, re.I | re.X)]
    held += [
        found.group()[len(found["head"]) :].strip("{}")
        for _, value in query
        for found in PAIR.finditer(value)
    ]
    forms = {form for each in held for form in (each, unquote(each), quote(each, safe=""))}
    return forms | {piece for form in forms for piece in re.split(r"[/?#@:&=;,\s]+", form)}
