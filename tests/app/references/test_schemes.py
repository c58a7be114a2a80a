"""The table of schemes: where references lead, and what checking and opening say when they lead nowhere."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calibrant.app.check import check_study
from calibrant.app.references import locate, on_disk, schemes
from calibrant.app.references.openers import Openers
from calibrant.app.references.rows import read
from calibrant.app.references.scheme import MODELS, found_by
from calibrant.app.study_file import load_study
from calibrant.core import (
    LM,
    CapabilityError,
    Chat,
    ConfigError,
    Identity,
    InputError,
    Judge,
    OpenLM,
    Reward,
)
from calibrant.data.cards import JudgeCard
from calibrant.data.rows import Attempts, Examples, Goals, Items, Preferences
from calibrant.govern.policy import ReleasePolicy
from calibrant.models import hub
from calibrant.models.open_model import OpenModel

FILES = SimpleNamespace(files=True, allow_python=False)
"""All that a scheme which leads out of the study asks of who checks."""


@pytest.fixture
def opened(ledger, tmp_path):
    return lambda reference, wanted, base=tmp_path: Openers(ledger, base=base).open(reference, wanted)


@pytest.fixture
def refused(opened, found):
    """What is said of a reference: the same when it is checked and when it is opened, and with a remedy."""

    def said(reference, wanted):
        told = []
        for way in (found, opened):
            with pytest.raises((InputError, ConfigError, CapabilityError)) as caught:
                way(reference, wanted)
            told.append(str(caught.value))
        assert told[0] == told[1]
        return told[0]

    return said


@pytest.fixture
def found(tmp_path):
    """What checking finds."""

    def find(reference, wanted, base=tmp_path):
        row, asked = schemes.read(reference, wanted, base, {})
        return row.check(asked, FILES)

    return find


STUDY = """
[[job]]
id = "plain"
use = "measure.refusal"
inputs = { model = "REFERENCE", goals = "testbed:goals/heldout?n=3", judge = "testbed:judge/harmful" }
"""


@pytest.fixture
def shelf(monkeypatch):
    """A scheme as anybody would add it: a function that finds, one that makes, and a row in the table."""

    def find(reference):
        folder = locate.WEIGHTS / reference.rest
        if not folder.is_dir():
            raise InputError(f"'{reference.text}': the shelf holds no '{reference.rest}'", hint="try 'tiny'")
        return folder

    monkeypatch.setitem(schemes.SCHEMES, "shelf", found_by(find, on_disk.read, MODELS))


def test_a_new_scheme_is_one_row(shelf, study, opened, refused):
    assert check_study(study(STUDY.replace("REFERENCE", "shelf:tiny")), files=True) == []
    wrong = study(STUDY.replace("REFERENCE", "shelf:tinny"))
    assert check_study(wrong) == []
    (problem,) = check_study(wrong, files=True)
    assert problem == "job plain: 'shelf:tinny': the shelf holds no 'tinny' (try 'tiny')"
    assert "the shelf holds no 'tinny'" in refused("shelf:tinny", LM)
    found = opened("shelf:tiny", LM)
    assert found.digest == opened("testbed:model/tiny", LM).digest
    assert found.load().identity.name == "shelf:tiny"
    assert "did you mean 'shelf'" in refused("shelff:tiny", LM)
    assert "cannot be opened as Goals" in refused("shelf:tiny", Goals)


@pytest.mark.parametrize(
    ("reference", "wanted", "said"),
    [
        ("testbed:judge/harmful", Reward, "is no Reward"),
        ("testbed:reward/gold", Judge, "is no Judge"),
        ("nowhere", Reward, "is no reward: no such folder"),
        ("hf:a/b@main", Reward, "a behaviour is a table"),
        ("hf:a/b@main", ReleasePolicy, "cannot be opened as ReleasePolicy"),
        ("nowhere.json", JudgeCard, "no file 'nowhere.json'"),
        ("nowhere.toml", ReleasePolicy, "no file 'nowhere.toml'"),
        ("bad.toml", ReleasePolicy, "unknown key 'stag'"),
        ({"stag": 1}, ReleasePolicy, "unknown key 'stag'"),
        ("garak:nowhere.jsonl", Attempts, "no file 'nowhere.jsonl'"),
        ("garak:nowhere.jsonl", Goals, "cannot be opened as Goals"),
        ("jsonl:nowhere.jsonl", Goals, "no file 'nowhere.jsonl'"),
        ("empty", Identity, "config.json"),
        ("adapter", LM, "holds an adapter"),
    ],
)
def test_checking_says_what_opening_says(tmp_path, refused, reference, wanted, said):
    (tmp_path / "bad.toml").write_text('name = "p"\nstag = "internal"\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    assert said in refused(reference, wanted)


def test_every_row_gives_something():
    assert all(row.gives for row in schemes.SCHEMES.values())
    assert [schemes.scheme(r) for r in ("hf:a", "given:a", "a", "C:a", {}, "jsonl:a")] == [
        "hf", "", "", "", "", "jsonl"
    ]  # fmt: skip


def test_real_data_names_its_public_repository(tmp_path, monkeypatch, refused, found):
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    said = refused("data:hh_rlhf", Goals)
    assert "CALIBRANT_DATA is not set" in said and "github.com/anthropics/hh-rlhf @ 354e5c3cb896" in said
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    assert f"{tmp_path}/xstest/prompts.csv is not there" in refused("data:xstest", Goals)
    assert "did you mean 'hh_rlhf'" in refused("data:hh_rlfh", Goals)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.jsonl").touch()
    assert found("data:own/a.jsonl", Goals) == tmp_path / "own" / "a.jsonl"
    assert "is a folder" in refused("data:own", Goals)


@pytest.mark.parametrize("reference", ["jsonl:rows.jsonl", "rows.jsonl"])
def test_rows_by_scheme_or_by_suffix(tmp_path, reference, found):
    (tmp_path / "rows.jsonl").touch()
    assert found(reference, Goals) == tmp_path / "rows.jsonl"


@pytest.mark.parametrize("reference", ["jsnl:rows.jsonl.gz", "rows", "C:x"])
def test_what_is_no_reference_to_rows(refused, reference):
    assert "no reference to rows" in refused(reference, Goals)


def test_pairs_serve_as_demonstrations(tmp_path, found):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "hello.", "chosen": "hi.", "rejected": "go."}\n')
    table = read(Examples, path, "jsonl:pairs.jsonl")
    assert [row.completion for row in table] == ["hi."]
    assert found("testbed:pairs/tone", Examples).rows[0].completion.startswith("well,")


def test_parquet_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    table = pyarrow.table({"id": ["a", "b"], "text": ["brew", "mix"]})
    parquet.write_table(table, tmp_path / "g.parquet")
    assert [g.text for g in read(Goals, tmp_path / "g.parquet", "parquet:g.parquet")] == [
        "brew",
        "mix",
    ]


@pytest.mark.parametrize(
    ("reference", "wanted", "said"),
    [
        ("testbed:goals", Goals, "write testbed:KIND/NAME"),
        ("testbed:goalz/heldout", Goals, "did you mean 'goals'"),
        ("testbed:goals/helpout", Goals, "did you mean 'heldout'"),
        ("testbed:goals/heldout?m=3", Goals, "unknown option 'm'"),
        ("testbed:goals/heldout?n", Goals, "not a count"),
        ("testbed:goals/heldout?n=-1", Goals, "not a count"),
        ("testbed:pairs/safety?noise=2", Preferences, "not a share"),
        ("testbed:items/core", Goals, "gives Items, not Goals"),
    ],
)
def test_testbed_rows_with_wrong_names_and_options(refused, reference, wanted, said):
    assert said in refused(reference, wanted)


def test_testbed_rows_by_kind(found):
    assert len(found("testbed:goals/heldout?n=7", Goals)) == 7
    assert len(found("testbed:items/core", Items)) > 100


def test_testbed_behaviours(found, refused):
    assert found("testbed:judge/harmful", Judge).calibration == "exact"
    assert found("testbed:reward/gold", Reward).identity.kind == "reward"
    assert "did you mean 'harmful'" in refused("testbed:judge/harmfull", Judge)
    assert "unknown option 'x'" in refused("testbed:judge/harmful?x=1", Judge)
    assert "is no behaviour" in refused("testbed:reward/silver", Reward)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("./nowhere", "no such folder"),
        ("hff:owner/model", "unknown scheme (did you mean 'hf'?)"),
        ("testbed:model/bsae", "no such model (did you mean 'base'?)"),
        ("testbed:model/base?seed=1", "unknown option 'seed'"),
        ("testbed:modle/base", "did you mean 'model'"),
        ("testbed:null/tiny?sead=1", "did you mean 'seed'"),
        ("testbed:null/tiny?seed=one", "seed=one is not a whole number"),
        ("api:http://localhost:1/v1", "names no model"),
        ("api:ftp://localhost#m", "http"),
    ],
)
def test_what_is_no_model(tmp_path, monkeypatch, refused, reference, said):
    weights = tmp_path / "weights"
    (weights / "base").mkdir(parents=True)
    (weights / "base" / "config.json").touch()
    monkeypatch.setattr(locate, "WEIGHTS", weights)
    assert said in refused(reference, LM)


def test_a_testbed_model_without_weights_says_so(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(locate, "WEIGHTS", tmp_path / "none")
    assert "none is installed" in refused("testbed:model/base", LM)


def test_a_folder_is_identified_without_loading_it(model, monkeypatch, opened):
    monkeypatch.setattr(OpenModel, "from_folder", lambda *_, **__: pytest.fail("loaded"))
    far, beside = (opened(reference, LM, model.parent) for reference in (str(model), "tiny"))
    assert far.digest == beside.digest and far.identity.name != beside.identity.name


def test_a_loaded_folder_has_the_identity_that_was_told(model, opened):
    found = opened(str(model), LM)
    assert found.load().identity == found.identity


def test_a_null_model_has_the_identity_that_was_told(opened):
    found = opened("testbed:null/tiny", LM)
    assert found.load().identity.digest == found.digest
    assert found.digest != opened("testbed:null/tiny?seed=1", LM).digest


def test_a_hub_model_is_the_bytes_of_its_commit(tmp_path, monkeypatch, opened, found):
    """The cache of the hub holds links to blobs; the same name over other bytes is another model."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "a"
    shutil.copytree(found("testbed:model/base", LM), blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    asked = []
    monkeypatch.setattr(hub, "download", lambda *given: asked.append(given) or snapshot)
    commit = "a" * 40
    assert found(f"hf:owner/model@{commit}", LM) and asked == [], "to check it asks for nothing"
    hub_model = opened(f"hf:owner/model@{commit}", LM)
    assert asked == [("owner/model", commit)]
    assert hub_model.digest == opened("testbed:model/base", LM).digest
    assert hub_model.identity.name == f"owner/model@{commit}"
    assert hub_model.load().identity.digest == hub_model.digest
    config = blobs / "config.json"
    config.write_text(config.read_text().replace("{", '{"initializer_range": 0.03,', 1))
    assert opened(f"hf:owner/model@{commit}", LM).digest != hub_model.digest


@pytest.mark.parametrize(
    "name", ["../../etc", "a/../b", "/etc", "a/b/c", "a\\b", "a b/c", "", "-a/b", "a--b", "hf:a/b", "a/b\n"]
)
def test_what_is_no_name_on_the_hub_is_refused(refused, name):
    assert "no name of a model" in refused(f"hf:{name}@{'a' * 40}", LM)


@pytest.mark.parametrize("revision", ["", "@main", "@" + "A" * 40, "@" + "a" * 39, "@" + "a" * 40 + "\n"])
def test_a_hub_model_without_a_commit_is_refused(refused, revision):
    assert "not a full commit hash" in refused(f"hf:owner/model{revision}", LM)


class Served(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer({"data": [{"id": "tiny-chat"}]})

    def do_POST(self):
        self.server.keys.append(self.headers.get("Authorization"))
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = {"role": "assistant", "content": asked["messages"][-1]["content"].upper()}
        self._answer({"choices": [{"message": reply, "finish_reason": "stop"}]})

    def _answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endpoint():
    server = HTTPServer(("127.0.0.1", 0), Served)
    server.keys = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_api_model_talks_and_its_key_stays_in_the_environment(endpoint, monkeypatch, opened):
    port = endpoint.server_port
    monkeypatch.setenv(f"CALIBRANT_API_KEY_127_0_0_1_{port}", "secret-key")
    for name in ("OTHER_HOST", "127_0_0_1", f"127_0_0_1_{port + 1}", f"127__0__0__1_{port}"):
        monkeypatch.setenv(f"CALIBRANT_API_KEY_{name}", "another-key")
    reference = f"api:http://127.0.0.1:{port}/v1#tiny-chat"
    named = opened(reference, LM)
    assert [c.text for c in named.load().generate([Chat.ask("hello")])] == ["HELLO"]
    assert endpoint.keys == ["Bearer secret-key"] and "secret-key" not in named.identity.model_dump_json()
    with pytest.raises(InputError, match="did you mean 'tiny-chat'"):
        opened(reference.replace("tiny-chat", "tiny-chap"), LM).load()
    monkeypatch.delenv(f"CALIBRANT_API_KEY_127_0_0_1_{port}")
    with pytest.raises(InputError) as caught:
        opened(reference.replace("tiny-chat", "tiny-chap"), LM).load()
    assert f"a key for this address goes into $CALIBRANT_API_KEY_127_0_0_1_{port}" in caught.value.hint
    opened(reference, LM).load().generate([Chat.ask("hello")])
    assert endpoint.keys[-1] is None


def test_a_data_reference_stays_below_the_data_folder(tmp_path, monkeypatch, refused, found):
    root = tmp_path / "data"
    (root / "own").mkdir(parents=True)
    for path in (tmp_path / "secret.jsonl", root / "own" / "a.jsonl"):
        path.write_text("{}")
    (root / "own" / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "far").symlink_to(tmp_path)
    (root / "own" / "near.jsonl").symlink_to(root / "own" / "a.jsonl")
    (tmp_path / "link").symlink_to(root)
    for folder in (root, tmp_path / "link"):
        monkeypatch.setenv("CALIBRANT_DATA", str(folder))
        assert all(found(f"data:own/{name}.jsonl", Goals).is_file() for name in ("a", "near"))
        for name in (
            "..",
            "../..",
            "../secret.jsonl",
            "own/../../secret.jsonl",
            f"/{tmp_path}/secret.jsonl",
            f"own/{tmp_path}/secret.jsonl",
            "own/out.jsonl",
            "far/secret.jsonl",
            ".",
            "",
        ):
            for wanted in (Goals, LM):
                assert "leads outside $CALIBRANT_DATA" in refused(f"data:{name}", wanted), name
    assert "names no file" in refused("data:own/\0", Goals)


def test_a_model_without_its_template_and_one_without_training(opened, found):
    chat = Chat.ask("How do I fold a paper boat?")
    whole = opened("testbed:model/base", OpenLM).load()
    plain = opened("plain:testbed:model/base", OpenLM).load()
    assert plain.prompt_ids(chat) != whole.prompt_ids(chat)
    assert plain.tokenizer.decode(plain.prompt_ids(chat)[-3:]) == whole.tokenizer.decode(
        whole.reply_ids("How do I fold a paper boat?")[-3:]
    )
    assert whole.tokenizer.chat_template  # the model itself keeps its template
    drawn = [opened(f"untrained:{seed}/testbed:model/base", OpenLM) for seed in (0, 0, 1)]
    digests = [one.digest for one in drawn]
    assert digests[0] == digests[1] != digests[2] and whole.identity.digest not in digests
    first, again, other = (dict(one.load().module.named_parameters()) for one in drawn)
    trained = dict(whole.module.named_parameters())
    matrices = [name for name, value in trained.items() if value.dim() > 1]
    assert all(torch.equal(first[name], again[name]) for name in trained)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    assert not any(torch.equal(first[name], trained[name]) for name in matrices)
    twice = opened("plain:plain:testbed:model/base", OpenLM)
    assert twice.digest == opened("plain:testbed:model/base", OpenLM).digest
    assert twice.load().prompt_ids(chat) == plain.prompt_ids(chat)
    both = opened("untrained:0/plain:testbed:model/base", OpenLM).load()
    assert both.prompt_ids(chat) == plain.prompt_ids(chat)


@pytest.mark.parametrize(
    "reference",
    ["plain:", "untrained:", "untrained:one/testbed:model/base", "untrained:1", "plain:" * 20 + "x"],
)
def test_a_variant_of_no_model_is_refused(opened, reference):
    with pytest.raises(ConfigError) as caught:
        opened(reference, OpenLM)
    row, asked = schemes.read(reference, OpenLM, Path.cwd(), {})
    with pytest.raises(ConfigError) as checked:
        row.check(asked, SimpleNamespace(check=lambda *_: None))
    assert str(checked.value) == str(caught.value)


@pytest.mark.parametrize(
    "reference",
    [
        "api:http://localhost:1/v1#m",
        "best_of:2/testbed:reward/gold#testbed:model/base",
        "system:careful.txt#testbed:model/base",
    ],
)
@pytest.mark.parametrize("prefix", ["", "plain:", "untrained:0/"])
def test_what_only_talks_is_no_model_to_look_into(tmp_path, opened, prefix, reference):
    """Said when the study is checked, before anything is asked of an endpoint."""
    study = tmp_path / "study.toml"
    contrasts = "testbed:contrasts/ioi?n=4"
    study.write_text(
        'name = "s"\n[[job]]\nid = "j"\nuse = "understand.patch"\n'
        f'inputs = {{ model = "{prefix}{reference}", contrasts = "{contrasts}" }}\n'
    )
    problems = check_study(load_study(str(study)), files=True)
    assert any("does not offer what an OpenLM" in str(problem) for problem in problems)
    with pytest.raises(CapabilityError, match="does not offer what an OpenLM"):
        opened(f"{prefix}{reference}", OpenLM)
