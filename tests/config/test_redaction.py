"""Passwords and tokens are removed from a text; scheme, host and path of its URLs are kept."""

import json
import logging
import shlex
import subprocess
import sys
import time
import warnings
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lth_scale.config.redaction import redact_logs, redacted, without_secrets

DATABASES = [
    "postgresql",
    "postgresql+psycopg2",
    "mysql+pymysql",
    "mssql+pyodbc",
    "oracle+oracledb",
    "snowflake",
]
WEB = ["http", "https", "git+https"]
letters = st.text("abcdefghijklmnopqrstuvwxyzABCZ0189", min_size=1, max_size=8)
names = st.sampled_from(
    ["password", "pwd", "passwd", "token", "access_token", "sslpassword", "sig", "api_key", "SAS"]
)
specials = st.text("/?#@:%&=+;'\"` ,|<>()[]{}\\äß中aB7Z", min_size=4, max_size=12)
words = st.text("/?#@:%&=+;'\"äß中aB7Z", min_size=4, max_size=12)
hosts = st.one_of(letters.map("h-{}.example".format), st.just("127.0.0.1"), st.just("[::1]"))
ports = st.one_of(st.just(""), st.integers(1, 65535).map(":{}".format))
paths = st.lists(letters, max_size=3).map(lambda parts: "".join(f"/{part}" for part in parts))
sentences = st.sampled_from(
    [
        "{}",
        "cannot reach {}",
        "{}: is no store",
        "see ({}).",
        "'{}' is wrong",
        'a "{}", b',
        "<{}>",
        "store={}",
        "x\n{}\ny",
        "{} and http://other.example/x",
        "`{}`",
        "[{}] failed; the rest goes on",
    ]
)


@st.composite
def addresses(draw, schemes) -> tuple[str, str]:
    """Scheme, host and path: what precedes and what follows a userinfo."""
    return draw(st.sampled_from(schemes)) + "://", draw(hosts) + draw(ports) + draw(paths)


def check(text: str, secret: str, *kept: str) -> None:
    shown = without_secrets(text)
    public = text.replace(secret, "", 1)
    assert secret in public or secret not in shown, shown
    assert all(part in shown for part in kept), shown
    assert without_secrets(shown) == shown


@settings(max_examples=400, deadline=None)
@given(addresses(DATABASES), letters, words, sentences)
@example(("postgresql://", "127.0.0.1:9/db"), "me", "S3cr3t/x", "{}: is no store")
@example(("postgresql://", "h/db"), "me", "p@ss?a=b", "{}")
@example(("postgresql://", "h1:1,h2:2/db"), "me", "12#4", "{}")
def test_a_database_password_may_contain_anything_that_sqlalchemy_accepts(
    address, user, password, sentence
):
    url = f"{address[0]}{user}:{password}@{address[1]}"
    check(
        sentence.format(url),
        password,
        *(address if "@" not in password and "?" not in password else [address[0]]),
    )


@settings(max_examples=400, deadline=None)
@given(addresses(WEB), letters, words, sentences)
def test_an_unencoded_password_in_a_web_address_is_removed(address, user, password, sentence):
    check(sentence.format(f"{address[0]}{user}:{password}@{address[1]}"), password, address[0])


@settings(max_examples=400, deadline=None)
@given(addresses(WEB + DATABASES), letters, specials, sentences)
def test_scheme_host_and_path_around_an_encoded_password_are_kept(
    address, user, password, sentence
):
    url = f"{address[0]}{user}:{quote(password, safe='')}@{address[1]}"
    check(sentence.format(url), quote(password, safe=""), address[0] + address[1])


@settings(max_examples=400, deadline=None)
@given(addresses(WEB + DATABASES), names, specials, sentences, st.booleans())
def test_queries_and_fragments_are_removed(address, name, secret, sentence, fragment):
    coded = quote_plus(secret)
    url = f"{address[0]}{address[1]}{'#' if fragment else '?user=me&'}{name}={coded}"
    check(sentence.format(url), coded, address[0] + address[1])


@settings(max_examples=400, deadline=None)
@given(
    names,
    specials.filter(lambda text: "\\" not in text),
    st.sampled_from(["", "db_", "AWS-", "--"]),
)
def test_a_value_under_the_name_of_a_secret_is_masked_in_any_quotes(name, secret, before):
    name = before + name
    bare = quote(secret, safe="")
    for text in (
        f"host=h {name}={shlex.quote(bare)} user=me",
        f"UID=me;{name}={{{secret.replace('}', '}}')}}};x=1",
        json.dumps({name: secret, "b": 1}),
        str({name: secret, "b": 1}),
        f"f({name}={secret!r}, b=1)",
        json.dumps(json.dumps({name: bare})),
        f"a&{name}={bare}&b=1",
        f"--{name.strip('-')} {bare} --seed 1",
    ):
        shown = without_secrets(text)
        assert secret not in shown and bare not in shown and name in shown, (text, shown)
        assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a https://me:p@ss@host:1/x?a=@b and http://u@h", "a https://host:1/x and http://h"),
        ("http://me:se/cret", "http://me"),
        ("mysql+pymysql://me:%40@h/d", "mysql+pymysql://h/d"),
        ("sqlite:////a/b@c/what#1/mlflow.db", "sqlite:////a/b@c/what#1/mlflow.db"),
        ("'sqlite:////my data/mlflow.db'", "'sqlite:////my data/mlflow.db'"),
        ("me@host said", "me@host said"),
        ("https://host/a@b, git+https://host/u/r@v1", "https://host/a@b, git+https://host/u/r@v1"),
        ("give http://HOST:PORT or sqlite:///FILE", "give http://HOST or sqlite:///FILE"),
        (
            "http://127.0.0.1:9 waits; it is in /home/me@work/x",
            "http://127.0.0.1:9 waits; it is in /home/me@work/x",
        ),
        ("postgresql://me:a b@h1:1,[::1]:2/db is down", "postgresql://h1:1,[::1]:2/db is down"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dy: no", "mssql+pyodbc:///: no"),
        ("DRIVER%3Dx%3BPWD%3DS3cr3t%3BUID%3Dme", "DRIVER%3Dx%3BPWD%3D***%3BUID%3Dme"),
        ("jdbc:mysql://h/d;user=me;password=S3", "jdbc:mysql://h/d;user=me;password=***"),
        ("Server=h;Pwd={a}}b};Uid=me", "Server=h;Pwd=***;Uid=me"),
        ("AccountName=a;AccountKey=k3y==;x=1", "AccountName=a;AccountKey=***;x=1"),
        ("'Authorization': 'Basic bWU6cGFzcw=='", "'Authorization': '***'"),
        ("-H Authorization:\tBearer abc.def-1", "-H Authorization:\t***"),
        (
            "token hf_abcdefghijklmnopqrstu is bad, hf_hub_download is not",
            "token *** is bad, hf_hub_download is not",
        ),
        ("pad_tokens: 3, tokenizer=x, keys: a", "pad_tokens: 3, tokenizer=x, keys: a"),
        ("pass: 3 of 4, auth: none", "pass: 3 of 4, auth: none"),
        ("signature: invalid; token : 1234567.", "signature: invalid; token : 1234567."),
        ("(sig: -1.25e-10), auth:\tdisabled!", "(sig: -1.25e-10), auth:\tdisabled!"),
        ("token: S3cr3t, pwd: !@#$%^ and pass: ab_cdefg", "token: ***, pwd: *** and pass: ***"),
        (
            "token=5 pass:3 'auth': none pwd: 'abc' sas: {x}",
            "token=*** pass:*** 'auth': *** pwd: '***' sas: ***",
        ),
        ("password: a;user=me", "password: ***;user=me"),
    ],
)
def test_examples_of_redacted_text(text, shown):
    assert without_secrets(text) == shown == without_secrets(shown)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "MLFLOW_TRACKING_URI",
            "postgresql://me:S3cr3t/x y@h/db",
            "invalid port 'S3cr3t', or 'S3cr3t/x y', or x y@h",
        ),
        ("MLFLOW_TRACKING_URI", "http://me:S3%40cr3t@h/db", "password S3@cr3t, S3%40cr3t"),
        (
            "MLFLOW_TRACKING_URI",
            "http://me:80/S3cr3t@h/db",
            "HTTPConnectionPool(host='me') with url: /S3cr3t@h/db/api",
        ),
        (
            "MLFLOW_TRACKING_URI",
            "postgresql:/me:S3cr3t@h/db",
            "postgresql:/me:S3cr3t@h/db: is no store",
        ),
        (
            "MLFLOW_TRACKING_URI",
            "postgresql://h/db?password=S3 cr3t",
            "postgresql://h/db?password=S3 cr3t: (S3 cr3t)",
        ),
        (
            "MLFLOW_TRACKING_URI",
            "mssql://h/?odbc_connect=PWD%3DS3cr3t%3B",
            "login with S3cr3t failed",
        ),
        ("MLFLOW_TRACKING_PASSWORD", "S3cr3t", "login as me:S3cr3t failed"),
        ("HF_TOKEN", "hf_S3cr3t", "(hf_S3cr3t)"),
        ("PGPASSWORD", "a-long-S3cr3t", "xa-long-S3cr3ty"),
    ],
)
def test_secrets_of_the_environment_are_masked_anywhere(name, value, told, monkeypatch):
    monkeypatch.setenv(name, value)
    shown = without_secrets(told)
    assert "S3" not in shown and "cr3t" not in shown, shown


def test_a_url_of_the_command_line_is_recognised_to_its_end(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["imp", "--run_name=http://me:12 34/5 S3cr3t@h/x"])
    assert (
        without_secrets("--run_name http://me:12 34/5 S3cr3t@h/x: no")
        == "--run_name http://h/x: no"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", "postgresql://mlflow:mlflow@db/mlflow"),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true"),
        ("MLFLOW_TRACKING_PASSWORD", "abc"),
        ("OLDPWD", "/home/me"),
        ("MLFLOW_TRACKING_PASSWORD", "data"),
    ],
)
def test_values_that_are_too_short_or_no_secrets_are_not_masked(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    text = "mlflow.jsonl in /home/me/database is true, abc"
    assert without_secrets(text) == text


def test_stored_values_are_redacted_except_names_of_existing_files(tmp_path, monkeypatch):
    (tmp_path / "password=x").mkdir()
    value = {"a": ["http://u:p@h/x", 1, None], "b": str(tmp_path / "password=x"), "c": ("token=x",)}
    assert redacted(value) == {"a": ["http://h/x", 1, None], "b": value["b"], "c": ("token=***",)}


def test_logs_and_warnings_of_libraries_are_redacted(caplog):
    make, form = logging.getLogRecordFactory(), warnings.formatwarning
    try:
        redact_logs()
        redact_logs()
        try:
            raise ValueError("password=S3cr3t")
        except ValueError:
            logging.getLogger("other").exception("at %s", "http://u:S3cr3t@h")
        assert (
            "http://h" in caplog.text
            and "ValueError" in caplog.text
            and "S3cr3t" not in caplog.text
        )
        assert "S3cr3t" not in warnings.formatwarning("token=S3cr3t", UserWarning, "f.py", 1)
    finally:
        logging.setLogRecordFactory(make)
        warnings.formatwarning = form


def test_long_texts_are_fast_and_the_module_imports_nothing_slow():
    began = time.perf_counter()
    for text in (
        "a" * 200_000,
        "a:/" * 50_000,
        "://" * 50_000,
        "password " * 20_000,
        "http://a:b@" * 10_000,
    ):
        without_secrets(text)
    assert time.perf_counter() - began < 5
    code = (
        "import lth_scale.config.redaction, sys; "
        "print([m for m in ('sqlalchemy', 'torch', 'mlflow') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
