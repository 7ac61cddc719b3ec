"""Secrets planted where users might put them appear in no file, output or run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands import cli
from pipeline.core import config
from pipeline.core.errors import UserError
from pipeline.core.settings import Csv
from pipeline.networks.bundle import save_bundle
from pipeline.sources import readers
from tests.support import clones, samples
from tests.support.params import write_params
from tests.support.tally import Tally

SECRET = "".join(["hunter2", "Zq9"])  # split, since this file is searched too
WITH_SECRET = [
    "https://user:{}@host/t.csv",
    "https://{}@host/t.csv",
    "s3://key:{}@bucket/t.csv",
    "s3://KEY:a/{}@bucket/t.csv",
    "simplecache::https://user:{}@host/t.csv",
    "https://host/t.csv?token={}",
    "https://host/t.csv?raw=true&api_key={}",
    "https://host/t.csv?X-Amz-Credential=a&X-Amz-Signature={}",
    "https://host/t.csv?sv=1&sig={}",
    "https://host/t.csv#access_token={}",
    "https://host/t.csv?token=${{TOKEN}}{}",
    "postgresql://user:{}@host/db",
    "https://host/t.csv?user=a&pass={}",
    "https://host/t.csv?user_pass={}",
    "https://host/t.csv?passphrase={}",
    "https://host/t.csv?pw={}",
    "https://host/t.csv?jwt={}",
    "https://host/t.csv?bearer={}",
    "https://host/t.csv?Access={}",
    "https://host/t.csv?hmac={}",
    "https://host/t.csv?otp={}",
    "https://host/t.csv#x=1;totp={}",
    "https://user:pa?{}@host/t.csv",
    "https://user:pa#{}@host/t.csv",
    "https://user:pa/?#{}@host/t.csv?x=1",
    "https://user:a::{}@host/t.csv",
    "https://host/t.csv?{}",
    "https://host/t.csv?{}=1",
    "https://host/t.csv#{}",
    "https://host/t?resource_id={}",
    "https://host/t.csv?raw=true&mail={}@b",
]
IN_NO_TEXT = ["https://user:a {}@host/t.csv", "https://user:a'{}@host/t.csv"]  # a blank or a quote ends a URL in a text
PUBLIC = [
    "https://host/t.csv?raw=true",
    "https://host/t?format=csv&gid=0#gid=0",
    "https://host:8080/a@b.csv",
    "abfs://container@account.dfs.core.windows.net/t.csv",
    "s3://bucket/a@b.csv",
    "https://host/t.csv?token=${TOKEN}",
    "https://${USER}:${TOKEN}@host/t.csv",
    "https://host/t.csv?Raw=true&page=2&dl=1&version=a@b&ref=main",
    "https://host:8080?ref=a@b",
    "http://[::1]:5000/t.csv?raw",
    "https://host/t.csv?${QUERY}&mail=${MAIL}",
    "sqlite:///mlflow2.db",
    "http://127.0.0.1:5000",
]


@pytest.mark.parametrize("name", ["data.source", "data.transfer", "tracking.uri"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(
    project: Callable[..., Path], name: str, tally: Tally
) -> None:
    for address in (pattern.format(SECRET) for pattern in WITH_SECRET + IN_NO_TEXT):
        with tally.trial("secret in an address of params.yaml"):
            folder = project({name: {"source": address} if name == "data.transfer" else address})
            with pytest.raises(UserError, match=r"may be a secret|variables are not expanded") as caught:
                config.load(folder / "params.yaml")
            assert SECRET not in str(caught.value)
            assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value) or "${TOKEN}" in str(caught.value)


@pytest.mark.parametrize("name", ["data.source", "tracking.uri"])
def test_a_public_address_is_accepted(project: Callable[..., Path], name: str) -> None:
    for address in PUBLIC:
        path = project({name: address}) / "params.yaml"
        if name == "tracking.uri" and "${" in address:
            with pytest.raises(UserError, match="variables are not expanded in this address"):
                config.load(path)
        else:
            config.load(path)


def test_an_address_in_the_wrong_place_is_shown_without_its_secret(project: Callable[..., Path], tally: Tally) -> None:
    for name in ("data.source", "train.lr", "model.hidden", "data.task", "search.sampler"):
        for address in WITH_SECRET:
            with tally.trial("secret in a value of another kind"):
                value = [address.format(SECRET)] if name == "data.source" else address.format(SECRET)
                with pytest.raises(UserError) as caught:
                    config.load(project({name: value}) / "params.yaml")
                assert SECRET not in str(caught.value)


def test_predict_shows_an_address_without_its_secret(
    server: tuple[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tally: Tally,
) -> None:
    host, answers = server
    monkeypatch.chdir(tmp_path)
    save_bundle(Path("model"), samples.bundle(samples.sample("iris")), [])
    for name, content in {
        "lacks": "a\n1\n",
        "word": samples.sample("iris").raw.astype(str).replace("0.2", "x").to_csv(index=False),
        "ragged": "a,b\n1\n",
        "empty": "",
    }.items():
        answers[f"/{name}.csv"] = content.encode()
        with tally.trial("secret in an address given to predict"):
            address = f"http://user:{SECRET}@{host}/{name}.csv?token={SECRET}"
            monkeypatch.setattr(sys, "argv", ["pipeline", "predict", "model", address, "-o", "o.csv"])
            with pytest.raises(SystemExit):
                cli.main()
            shown = capsys.readouterr()
            assert f"http://{host}/{name}.csv" in shown.err
            assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    "arguments", [["predict", "{}", "t.csv", "-o", "o.csv"], ["predict", "model", "t.csv", "-o", "{}"], ["adopt", "{}"]]
)
def test_an_address_where_a_path_belongs_is_refused_and_not_repeated(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    address = f"s3://key:{SECRET}@bucket/o.csv"
    with tally.trial("secret in an address given for a path"):
        monkeypatch.setattr(sys, "argv", ["pipeline", *(part.format(address) for part in arguments)])
        with pytest.raises(SystemExit):
            cli.main()
        shown = capsys.readouterr()
        assert "must be a path, not a URL" in shown.err
        assert SECRET not in shown.out + shown.err


def test_a_variable_in_an_address_is_expanded_only_for_reading(
    server: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, answers = server
    answers["/t.csv"] = b"a,b\n1,2\n"
    monkeypatch.setenv("TOKEN", SECRET)
    assert readers.read(f"http://{host}/t.csv?token=${{TOKEN}}", Csv()).shape == (1, 2)
    for path in ("/none.csv", "/403", "/hangup"):
        with pytest.raises(UserError) as caught:
            readers.read(f"http://u:${{TOKEN}}@{host}{path}?token=${{TOKEN}}", Csv())
        assert SECRET not in str(caught.value)
    monkeypatch.delenv("TOKEN")
    with pytest.raises(UserError, match="needs the variable TOKEN, which is not set"):
        readers.read(f"http://{host}/t.csv?token=${{TOKEN}}", Csv())


def found_in(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 30
    return [path for path in files if SECRET.encode() in path.read_bytes()]


def test_no_secret_of_address_or_environment_is_written_anywhere(
    server: tuple[str, dict[str, bytes]], tmp_path: Path, tally: Tally
) -> None:
    host, answers = server
    answers["/t.csv"] = samples.mixed().to_csv(index=False).encode()
    source = f"http://{host}/t.csv?token=${{TOKEN}}"
    folder = clones.clone(
        tmp_path / "clone",
        {"data.source": source, "data.target": "sold", "data.task": "binary", "register.minimum": 0.0},
    )
    planted = dict.fromkeys(
        ("TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY"), SECRET
    )
    environment = os.environ | planted | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def call(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, env=environment | more, capture_output=True, text=True, check=False
        )  # fmt: skip

    with tally.trial("secret in the environment and in a variable of the address"):
        done = call("dvc", "repro", "prepare")
        assert done.returncode == 0, done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert found_in(folder) == []
    with tally.trial("secret in the address of a dead server"):
        done = call(
            "python",
            "-m",
            "pipeline.stages",
            "prepare",
            MLFLOW_TRACKING_URI=f"http://user:{SECRET}@127.0.0.1:9",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tracking: http://127.0.0.1:9 does not answer" in done.stdout
        assert SECRET not in done.stdout + done.stderr
        assert found_in(folder) == []
    with tally.trial("secret in data.source: dvc.lock, runs and output"):
        write_params(
            folder, {"data.source": f"http://u:{SECRET}@{host}/t.csv", "data.target": "sold", "data.task": "binary"}
        )
        done = call("dvc", "repro", "fetch")
        assert done.returncode != 0
        assert "may be a secret" in done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert found_in(folder) == [folder / "params.yaml"]
