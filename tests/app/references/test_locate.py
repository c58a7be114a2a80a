"""Where references lead, and what is said when they lead nowhere."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from calibrant.app.references import locate
from calibrant.core import Chat, ConfigError, InputError
from calibrant.data.rows import Examples, Goals, Items, Preferences
from calibrant.models import hub
from calibrant.models.open_model import OpenModel


def failure(call, *arguments):
    with pytest.raises((InputError, ConfigError)) as caught:
        call(*arguments)
    assert caught.value.hint, caught.value.message
    return str(caught.value)


def test_files_are_looked_for_beside_the_study_then_here_then_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert locate.file("demo_policy.toml", tmp_path).parent == locate.STUDIES
    (tmp_path / "here" / "demo_policy.toml").touch()
    assert locate.file("demo_policy.toml", tmp_path).parent == tmp_path / "here"
    (tmp_path / "demo_policy.toml").touch()
    assert locate.file("demo_policy.toml", tmp_path).parent == tmp_path
    assert "no file 'x.toml'" in failure(locate.file, "x.toml", tmp_path)


def test_toml_says_where_it_cannot_be_read(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('name = "a"\nname = "b"\n')
    assert "line 2" in failure(locate.toml, path)
    path.write_bytes(b'name = "\xff"')
    assert "not UTF-8 (byte 8)" in failure(locate.toml, path)
    assert "no such file" in failure(locate.toml, tmp_path / "none.toml")


def test_real_data_names_its_public_repository(tmp_path, monkeypatch):
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    said = failure(locate.data, "data:hh_rlhf")
    assert "CALIBRANT_DATA is not set" in said and "github.com/anthropics/hh-rlhf @ 354e5c3cb896" in said
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    assert f"{tmp_path}/xstest/prompts.csv is not there" in failure(locate.data, "data:xstest")
    assert "did you mean 'hh_rlhf'" in failure(locate.data, "data:hh_rlfh")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.jsonl").touch()
    assert locate.rows("data:own/a.jsonl", tmp_path) == tmp_path / "own" / "a.jsonl"
    assert "is a folder" in failure(locate.rows, "data:own", tmp_path)


@pytest.mark.parametrize("reference", ["jsonl:rows.jsonl", "rows.jsonl"])
def test_rows_by_scheme_or_by_suffix(tmp_path, reference):
    (tmp_path / "rows.jsonl").touch()
    assert locate.rows(reference, tmp_path) == tmp_path / "rows.jsonl"


@pytest.mark.parametrize("reference", ["jsnl:rows.jsonl.gz", "rows", "api:x"])
def test_what_is_no_reference_to_rows(tmp_path, reference):
    assert "no reference to rows" in failure(locate.rows, reference, tmp_path)


def test_pairs_serve_as_demonstrations(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "hello.", "chosen": "hi.", "rejected": "go."}\n')
    table = locate.read(Examples, path, "jsonl:pairs.jsonl")
    assert [row.completion for row in table] == ["hi."]
    assert locate.testbed_rows("testbed:pairs/tone", Examples).rows[0].completion.startswith("well,")


def test_parquet_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    table = pyarrow.table({"id": ["a", "b"], "text": ["brew", "mix"]})
    parquet.write_table(table, tmp_path / "g.parquet")
    assert [g.text for g in locate.read(Goals, tmp_path / "g.parquet", "parquet:g.parquet")] == [
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
def test_testbed_rows_with_wrong_names_and_options(reference, wanted, said):
    with pytest.raises((InputError, ConfigError)) as caught:
        locate.testbed_rows(reference, wanted)
    assert said in str(caught.value)


def test_testbed_rows_by_kind():
    assert len(locate.testbed_rows("testbed:goals/heldout?n=7", Goals)) == 7
    assert len(locate.testbed_rows("testbed:items/core", Items)) > 100


def test_testbed_behaviours():
    assert locate.testbed_behaviour("testbed:judge/harmful").calibration == "exact"
    assert locate.testbed_behaviour("testbed:reward/gold").identity.kind == "reward"
    assert "did you mean 'harmful'" in failure(locate.testbed_behaviour, "testbed:judge/harmfull")
    assert "unknown option 'x'" in failure(locate.testbed_behaviour, "testbed:judge/harmful?x=1")
    assert "is no behaviour" in failure(locate.testbed_behaviour, "testbed:reward/silver")


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
def test_what_is_no_model(tmp_path, monkeypatch, reference, said):
    weights = tmp_path / "weights"
    (weights / "base").mkdir(parents=True)
    (weights / "base" / "config.json").touch()
    monkeypatch.setattr(locate, "WEIGHTS", weights)
    assert said in failure(locate.model, reference, tmp_path)


def test_a_testbed_model_without_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "WEIGHTS", tmp_path / "none")
    assert "none is installed" in failure(locate.model, "testbed:model/base", tmp_path)


def test_a_folder_is_identified_without_loading_it(model, monkeypatch):
    monkeypatch.setattr(OpenModel, "from_folder", lambda *_, **__: pytest.fail("loaded"))
    identity, _ = locate.model(str(model), model.parent)
    beside, _ = locate.model("tiny", model.parent)
    assert identity.digest == beside.digest and identity.name != beside.name


def test_a_loaded_folder_has_the_identity_that_was_told(model):
    identity, load = locate.model(str(model), model.parent)
    assert load().identity == identity


def test_a_null_model_has_the_identity_that_was_told(tmp_path):
    identity, load = locate.model("testbed:null/tiny", tmp_path)
    assert load().identity.digest == identity.digest
    assert identity.digest != locate.model("testbed:null/tiny?seed=1", tmp_path)[0].digest


def test_a_hub_model_is_the_bytes_of_its_commit(tmp_path, monkeypatch):
    """The cache of the hub holds links to blobs; the same name over other bytes is another model."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "a"
    shutil.copytree(locate.model_folder("testbed:model/base", tmp_path), blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    asked = []
    monkeypatch.setattr(hub, "download", lambda *given: asked.append(given) or snapshot)
    commit = "a" * 40
    identity, load = locate.model(f"hf:owner/model@{commit}", tmp_path)
    assert asked == [("owner/model", commit)]
    assert identity.digest == locate.model("testbed:model/base", tmp_path)[0].digest
    assert identity.name == f"owner/model@{commit}"
    assert load().identity.digest == identity.digest
    config = blobs / "config.json"
    config.write_text(config.read_text().replace("{", '{"initializer_range": 0.03,', 1))
    assert locate.model(f"hf:owner/model@{commit}", tmp_path)[0].digest != identity.digest


@pytest.mark.parametrize(
    "name", ["../../etc", "a/../b", "/etc", "a/b/c", "a\\b", "a b/c", "", "-a/b", "a--b", "hf:a/b", "a/b\n"]
)
def test_what_is_no_name_on_the_hub_is_refused(tmp_path, name):
    assert "no name of a model" in failure(lambda: locate.model(f"hf:{name}@{'a' * 40}", tmp_path))


@pytest.mark.parametrize("revision", ["", "@main", "@" + "A" * 40, "@" + "a" * 39, "@" + "a" * 40 + "\n"])
def test_a_hub_model_without_a_commit_is_refused(tmp_path, revision):
    assert "not a full commit hash" in failure(lambda: locate.model(f"hf:owner/model{revision}", tmp_path))


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


def test_an_api_model_talks_and_its_key_stays_in_the_environment(endpoint, tmp_path, monkeypatch):
    port = endpoint.server_port
    monkeypatch.setenv(f"CALIBRANT_API_KEY_127_0_0_1_{port}", "secret-key")
    for name in ("OTHER_HOST", "127_0_0_1", f"127_0_0_1_{port + 1}", f"127__0__0__1_{port}"):
        monkeypatch.setenv(f"CALIBRANT_API_KEY_{name}", "another-key")
    reference = f"api:http://127.0.0.1:{port}/v1#tiny-chat"
    identity, load = locate.model(reference, tmp_path)
    assert [c.text for c in load().generate([Chat.ask("hello")])] == ["HELLO"]
    assert endpoint.keys == ["Bearer secret-key"] and "secret-key" not in identity.model_dump_json()
    _, unknown = locate.model(reference.replace("tiny-chat", "tiny-chap"), tmp_path)
    assert "did you mean 'tiny-chat'" in failure(unknown)
    monkeypatch.delenv(f"CALIBRANT_API_KEY_127_0_0_1_{port}")
    _, bare = locate.model(reference.replace("tiny-chat", "tiny-chap"), tmp_path)
    assert f"a key for this address goes into $CALIBRANT_API_KEY_127_0_0_1_{port}" in failure(bare)
    locate.model(reference, tmp_path)[1]().generate([Chat.ask("hello")])
    assert endpoint.keys[-1] is None


def test_a_data_reference_stays_below_the_data_folder(tmp_path, monkeypatch):
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
        assert locate.data("data:own/a.jsonl").is_file() and locate.data("data:own/near.jsonl").is_file()
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
            assert "leads outside $CALIBRANT_DATA" in failure(locate.data, f"data:{name}"), name
            assert "leads outside" in failure(locate.rows, f"data:{name}", tmp_path)
    assert "names no file" in failure(locate.data, "data:own/\0")
