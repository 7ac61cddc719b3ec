"""Hostile params.yaml by number: the shipped file, changed as users, programs or attackers might change it."""

import random
import string
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.core import config
from pipeline.core.errors import UserError
from pipeline.core.settings import Config, is_whole
from pipeline.networks.bundle import Bundle
from pipeline.stages.finetune import adapt
from pipeline.stages.train import overfit
from pipeline.training import loop
from pipeline.training.calibration import calibrated
from tests.support import samples
from tests.support.imports import ROOT

SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
LINES = SHIPPED.splitlines()

VALUES = [
    "null", "~", "", "true", "yes", "[]", "{}", "-1", "0", "1", "1e400", "-1e400", ".inf", "-.inf", ".nan", "9" * 400, "9" * 5000,
    "0x" + "f" * 5000, "0o7", "1_000", "+_", "0b_", "1:20:30", "2013-01-01", "2013-99-99", "=", "'", '"', "|", ">", "- 1", "?", "[1, 2",
    "{a: 1", "*x", "&x 1", "&x [*x]", "!!python/object/apply:os.system ['touch {payload}']", "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [[touch, {payload}]]", "!!int ''", "!!int x", "!!float ''", "!!bool maybe", "!!timestamp x",
    "!!binary é", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!merge x", "!!null x", "!point 3", "!<x> 3", "<<",
    '"\\ud800"', '"\\0"', '"\\x1b[2J"', "'\u202e'", "\x00", "\x07", "\u2028", "a" * 100_000, "[" * 400 + "]" * 400, "[" * 100_000,
    "{a: " * 300 + "1" + "}" * 300, "../../../etc/passwd", "/etc/passwd", "$(touch {payload})", "`touch {payload}`", "; touch {payload}",
    "{0.__class__}", "%s%n", "${PATH}", "https://u:p@h/x.csv", "s3://key:secret@b/t.csv", "sklearn:../iris", "openml:", "file:///dev/zero",
    "[[[1]]]", "[null]", "{low: 1}", "{low: 1, high: .inf}", "{choices: []}", "{choices: [{a: 1}]}", "{choices: [1e400]}",
    "1" + "0" * 300, "1.0e-400", "18446744073709551616", "[1, 1e99]", "name'", "a\tb", "'; DROP TABLE runs; --",
]  # fmt: skip


def laughs(rng: random.Random) -> str:
    wide, deep = rng.randrange(2, 10), rng.randrange(5, 30)
    kind = rng.choice(["[{}]", "{{<<: [{}]}}"])
    lines = ["l0: &l0 " + ("{a: 1}" if "<<" in kind else "[a]")]
    lines += [f"l{k}: &l{k} " + kind.format(", ".join([f"*l{k - 1}"] * wide)) for k in range(1, deep)]
    return SHIPPED + "\n" + "\n".join(lines)


def one_value(rng: random.Random) -> str:
    lines = list(LINES)
    for _ in range(rng.choice([1, 1, 1, 3])):
        place = rng.choice([k for k, line in enumerate(lines) if ":" in line and not line.startswith("#")])
        lines[place] = f"{lines[place].split(':')[0]}: {rng.choice(VALUES)}"
    return "\n".join(lines)


def inner_value(rng: random.Random) -> str:
    tree = config.read_yaml(ROOT / "params.yaml")
    odd: list[Any] = [
        None, True, -1, 0, 1e308, "", "x", [], {}, [[]], [{}], {"a": {}}, 10**30, 1e-320, "\x1b[31m", {"": 1}, "😀" * 50,
        [None] * 5, {"low": 0, "high": 1}, {"choices": [[1], "a", None]}, 2**63, "LGA", ["a"] * 9000, {str(k): k for k in range(3000)},
    ]  # fmt: skip
    for _ in range(rng.choice([1, 2, 5])):
        node: Any = tree
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            inside = node[key]
            if isinstance(inside, dict | list) and inside and rng.random() < 0.8:
                node = inside
                continue
            change = rng.random()
            if change < 0.7:
                node[key] = rng.choice(odd)
            elif change < 0.85:
                del node[key]
            elif isinstance(node, dict):
                node[rng.choice(["", "lr", "a.b", "__class__", "x" * 500, "source"])] = rng.choice(odd)
            break
        if not tree:
            break
    return config.dump_yaml(tree)


PLAIN = samples.configuration().model_dump(mode="json", exclude={"search": {"space"}, "register_": True})
NUMBERS = [
    *(name for name, value in config.flatten(PLAIN).items() if type(value) in (int, float)),
    *["model.hidden"] * 3, "train.clip", "search.rows", "search.workers", "search.stack",
]  # fmt: skip


def size(rng: random.Random) -> str:
    """Set sizes, rates and counts from zero to absurd, for networks that use them."""
    tree = config.read_yaml(ROOT / "params.yaml")
    values: dict[str, Any] = {
        "model.numeric": rng.choice(["plain", "ple", "plr"]),
        "model.categories": rng.choice(["onehot", "embedding"]),
        "model.init": rng.choice(["default", "kaiming"]),
        "model.activation": rng.choice(["relu", "leaky_relu"]),
        "train.optimizer": rng.choice(["preset", "sgd", "adam"]),
        "train.schedule": rng.choice(["preset", "constant", "cosine"]),
    }
    for name in rng.choices(NUMBERS, k=rng.choice([1, 1, 2, 3])):
        absurd = rng.choice([0, 2**16, 2**31, 2**63 - 1, 2**63, 10**30])
        value = rng.choice([absurd, 10 ** rng.randrange(13), rng.randrange(1, 500), rng.randrange(1, 20)])
        if not is_whole(name):
            edges = [0.5, 0.999999, 1 - 2**-53, 1e-320, 1e-45, 1e38, 3.5e38, 1e155, 1e308]
            value = rng.choice([value, 10.0 ** rng.randrange(-50, 50), rng.choice(edges)])
        values[name] = [value] * rng.choice([1, 2, 2, 100]) if name == "model.hidden" else value
    for name, value in values.items():
        samples.put(tree, name.split("."), value)
    return config.dump_yaml(tree)


def damaged(rng: random.Random) -> bytes:
    content = bytearray(SHIPPED.encode())
    for _ in range(rng.choice([1, 3, 30, 1000])):
        place, change = rng.randrange(len(content)), rng.randrange(4)
        if change == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            del content[place : place + rng.randrange(1, 30)]
        elif change == 2:
            content[place:place] = rng.choice("[]{}:-&*!|>'\"%@`#?,\n\t <~=").encode() * rng.choice([1, 1, 2, 50])
        else:
            end = place + rng.randrange(200)
            content[place:place] = content[place:end]
        if not content:
            break
    return bytes(content)


def structure(rng: random.Random) -> str | bytes:
    token = [
        *"[]{}:-&*!|>'\"%?,#\n\t ",
        "- ",
        ": ",
        "<<: ",
        "a",
        "&a ",
        "*a",
        "!!set ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "%TAG ! !\n",
        "? ",
    ]
    makers: list[Callable[[], str | bytes]] = [
        lambda: "".join(rng.choices(token, k=rng.randrange(200))),
        lambda: rng.randbytes(rng.randrange(5000)),
        lambda: SHIPPED.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp500", "utf-7"]), "replace"),
        lambda: SHIPPED.replace("data", "dätä").encode("latin-1", "replace"),
        lambda: b"\x80\x04\x95" + rng.randbytes(50) + b".",
        lambda: SHIPPED + "\n" + SHIPPED,
        lambda: SHIPPED.replace("\n", "\r"),
        lambda: "%YAML 1.1\n---\n" + SHIPPED,
        lambda: SHIPPED * 2000,  # some 10 MB
        lambda: "a: " + "x" * 10_000_000,
        lambda: "x: [" + "1, " * 40_000 + "1]",
        lambda: "\n".join(" " * k + "a:" for k in range(rng.choice([20, 400]))),
        lambda: "\n".join(f"{''.join(rng.choices(string.printable, k=9))}: 1" for _ in range(50)),
        lambda: SHIPPED + "\n" + "\n".join(f"k{k}: {k}" for k in range(5000)),
        lambda: "&a [" + "*a, " * 1000 + "*a]",
        lambda: "- " * 3000 + "a",
    ]
    return rng.choice(makers)()


@cache
def flights() -> pd.DataFrame:
    """A small table with the columns that the shipped file names."""
    rng = np.random.default_rng(0)
    delay, carrier = rng.normal(size=150), rng.choice(["AA", "UA", "B6"], 150)
    return pd.DataFrame(
        {
            "dep_delay": np.where(rng.random(150) < 0.1, np.nan, delay),
            "distance": rng.normal(1000, 300, 150),
            "carrier": carrier,
            "origin": rng.choice(["EWR", "JFK", "LGA"], 150),
            "month": rng.integers(1, 13, 150),
            "arrival": np.where(delay > 0.5, "late", np.where(carrier == "AA", "early", "on_time")),
        }
    )


def trained(settings: Config) -> None:
    """Prepare a table, train the networks for two steps and use them, as the stages do."""
    sample = samples.make(flights(), settings.data, settings.seed)
    settings = settings.sized(len(sample.train))
    rows = sample.train.take(torch.arange(min(len(sample.train), 2 * settings.train.rows_a_step)))
    members = loop.new_members(settings, sample.train, sample.schema)
    quick = settings.train.model_copy(
        update={"overfit": settings.train.overfit and settings.train.overfit.model_copy(update={"steps": 2})}
    )
    with suppress(UserError):  # two steps are too few to overfit
        overfit.overfit_check(members[0].network, rows, quick, sample.target, seed=settings.seed)
    loop.fit(members, rows, sample.val, sample.target, until=1)
    networks = tuple(member.fitted for member in members)
    bundle = Bundle(networks, settings.model, sample.schema, sample.target, sample.preprocessor, {})
    if settings.train.calibration:
        bundle = calibrated(bundle, sample.val)
    assert len(bundle.predict(flights())) == len(flights())
    tuned = adapt.members(bundle, sample.target, settings, torch.device("cpu"))
    loop.fit(tuned, rows, sample.val, sample.target, until=1)


def case(number: int, folder: Path) -> None:
    rng = random.Random(f"params {number}")
    kinds: list[Callable[[random.Random], str | bytes]] = [
        *[one_value] * 3, *[inner_value] * 2, *[size] * 3, damaged, structure, laughs
    ]  # fmt: skip
    made = rng.choice(kinds)(rng)
    path, payload = folder / "params.yaml", folder / "payload"
    content = (
        made if isinstance(made, bytes) else made.replace("{payload}", str(payload)).encode("utf-8", "surrogatepass")
    )
    path.write_bytes(content)
    try:
        trained(config.load(path))
    finally:
        assert not payload.exists(), "code in the file was run"
