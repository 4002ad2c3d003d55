"""Hub ids to voices, through the real huggingface_hub client and a hub on loopback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.voices.hf_factory import edit_json, make_checkpoint
from tests.voices.loopback_hub import Repository, connect, serving
from vits_prune.errors import HubError, InputError, LoginError
from vits_prune.progress import Progress
from vits_prune.voices import hub as hub_module
from vits_prune.voices.checkpoint import load_checkpoint
from vits_prune.voices.hub import fetch_snapshot, parse_repo_id, trim_cache
from vits_prune.voices.load import load_hub
from vits_prune.voices.voice import Origin

ROOT = Path(__file__).parents[2]
TINY = "someone/tiny-vits"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints by name, made once; tests that change one copy it."""
    base = tmp_path_factory.mktemp("checkpoints")
    made = {
        "tiny": make_checkpoint(base / "tiny"),
        "other": make_checkpoint(base / "other", seed=1),
        "crowd": make_checkpoint(base / "crowd", speakers=3),
    }
    for folder in made.values():  # what a real repository holds beside it
        (folder / "pytorch_model.bin").write_bytes(b"never to be downloaded")
        (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    return made


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    """A loopback hub with the repository TINY, and a client with an empty cache."""
    with serving() as server:
        server.repositories[TINY] = [Repository(folders["tiny"], licence="cc-by-nc-4.0")]
        connect(monkeypatch, server, tmp_path)
        yield server


@pytest.fixture
def cache(hub, tmp_path):
    return tmp_path / "cache"


def _copy(folder, to):
    return Path(shutil.copytree(folder, to))


def _weights(voice):
    return dict(voice.model.named_parameters())


def test_parse_repo_id():
    for text, expected in {
        "facebook/mms-tts-eng": ("facebook/mms-tts-eng", None),
        "  facebook/mms-tts-eng ": ("facebook/mms-tts-eng", None),
        "owner/name\n": ("owner/name", None),
        "owner/name@v1.0": ("owner/name", "v1.0"),
        "owner/name@refs/pr/3": ("owner/name", "refs/pr/3"),
        "https://huggingface.co/owner/name": ("owner/name", None),
        "https://huggingface.co/owner/name/": ("owner/name", None),
        "https://huggingface.co/owner/name/tree/main": ("owner/name", "main"),
        "https://huggingface.co/owner/name@abc": ("owner/name", "abc"),
    }.items():
        assert parse_repo_id(text) == expected


NO_REPOSITORIES = [
    *("", "name", "a/b/c", "/etc/passwd", "../secret", "owner/..", "owner/../name"),
    *("./owner/name", "C:\\voices\\joe", "C:/voices", "file:///etc/passwd", "file:owner/name"),
    *("https://example.com/owner/name", "http://huggingface.co/owner/name"),
    *("https://huggingface.co.evil.com/owner/name", "https://huggingface.co/datasets/name"),
    *("https://huggingface.co/spaces/owner/name", "owner name/voice", "owner/na me"),
    *("owner/name@", "owner/name@../../x", "owner/name@a b", "owner//name", "~/voice"),
    *("owner/name?x=1", "owner/name.git", "o" * 600 + "/name", "owner/na\0me", "datasets/name"),
]


def test_parse_repo_id_refuses():
    for text in NO_REPOSITORIES:
        with pytest.raises(InputError):
            parse_repo_id(text)


def test_a_voice_from_the_hub(hub, folders):
    seen = []
    voice = load_hub(TINY, progress=Progress(lambda *told: seen.append(told)))
    commit = hub.repositories[TINY][0].commit
    assert voice.origin == Origin("hugging-face", TINY, commit, "cc-by-nc-4.0")
    assert voice.name == "tiny-vits"
    local = load_checkpoint(folders["tiny"], name="tiny", origin=Origin("hugging-face", "tiny"))
    assert all(
        torch.equal(tensor, _weights(local)[name]) for name, tensor in _weights(voice).items()
    )
    assert (
        next(voice.tokenizer.sentences("hello")).ids == next(local.tokenizer.sentences("hello")).ids
    )
    wanted = [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert (
        sorted(path.rpartition("/")[2] for path in hub.paths("GET") if "/resolve/" in path)
        == wanted
    )
    megabytes = sum((folders["tiny"] / name).stat().st_size for name in wanted) / 1e6
    assert seen[-1] == (f"downloading, {megabytes:.0f} of {megabytes:.0f} MB", 1.0)
    done = [fraction for _, fraction in seen]
    assert done == sorted(done)


def test_config_is_fetched_before_the_weights(hub):
    load_hub(TINY)
    files = [path.rpartition("/")[2] for path in hub.paths("GET") if "/resolve/" in path]
    assert files.index("config.json") == 0
    assert files[-1] == "model.safetensors"


def test_a_second_load_downloads_nothing(hub):
    load_hub(TINY)
    hub.requests.clear()
    load_hub(TINY)
    assert not [path for path in hub.paths("GET") if "/resolve/" in path]


def test_revision(hub, folders):
    old = Repository(folders["other"], branches=("v1",))
    hub.repositories[TINY].append(old)
    by_tag, by_commit, by_reference = (
        load_hub(TINY, revision="v1"),
        load_hub(TINY, revision=old.commit),
        load_hub(f"{TINY}@v1"),
    )
    main = load_hub(TINY)
    assert (
        by_tag.origin.revision
        == by_commit.origin.revision
        == by_reference.origin.revision
        == old.commit
    )
    assert main.origin.revision == hub.repositories[TINY][0].commit
    name = "decoder.conv_pre.weight"
    assert torch.equal(_weights(by_tag)[name], _weights(by_reference)[name])
    assert not torch.equal(_weights(by_tag)[name], _weights(main)[name])


def test_several_speakers(hub, folders):
    hub.repositories["someone/crowd"] = [Repository(folders["crowd"])]
    voice = load_hub("someone/crowd", speaker="2")
    assert (voice.speaker, voice.speakers) == (2, ("0", "1", "2"))
    assert voice.origin.licence is None or voice.origin.licence == "cc-by-4.0"
    with pytest.raises(InputError, match="no speaker"):
        load_hub("someone/crowd", speaker=3)


def test_licence_of_the_readme_where_the_card_has_none(hub, folders):
    hub.repositories[TINY] = [Repository(folders["tiny"])]
    assert load_hub(TINY).origin.licence == "cc-by-4.0"


def test_shards(hub, folders, tmp_path):
    from transformers import VitsModel

    folder = _copy(folders["tiny"], tmp_path / "shards")
    whole = load_checkpoint(folder, name="x", origin=Origin("hugging-face", "x"))
    (folder / "model.safetensors").unlink()
    VitsModel.from_pretrained(folders["tiny"]).save_pretrained(folder, max_shard_size="100KB")
    (folder / "stray.safetensors").write_bytes(b"not named by the index")
    hub.repositories[TINY] = [Repository(folder)]
    voice = load_hub(TINY)
    fetched = [
        path.rpartition("/")[2] for path in hub.paths("GET") if path.endswith(".safetensors")
    ]
    assert len(fetched) > 1
    assert "stray.safetensors" not in fetched
    assert all(
        torch.equal(tensor, _weights(whole)[name]) for name, tensor in _weights(voice).items()
    )


def test_token_false_sends_none_though_one_is_set(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_owner")
    load_hub(TINY, token=False)
    assert len(hub.requests) > 5
    assert not [headers for _, _, headers in hub.requests if "authorization" in headers]
    assert "hf_of_the_owner" not in str(hub.requests)


def test_token_none_sends_the_usual_one_and_a_string_itself(hub, monkeypatch, folders):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_owner")
    load_hub(TINY)
    assert {headers.get("authorization") for _, _, headers in hub.requests} == {
        "Bearer hf_of_the_owner"
    }
    hub.requests.clear()
    hub.repositories["someone/second"] = [Repository(folders["other"])]
    load_hub("someone/second", token="hf_of_a_visitor")
    assert {headers.get("authorization") for _, _, headers in hub.requests} == {
        "Bearer hf_of_a_visitor"
    }


def test_weights_on_another_host_get_no_token(hub, folders):
    with serving("localhost") as storage:
        storage.repositories[TINY] = hub.repositories[TINY]
        hub.redirect_weights_to = storage.url
        load_hub(TINY, token="hf_of_a_visitor")
        assert [path.rpartition("/")[2] for path in storage.paths("GET")] == ["model.safetensors"]
        assert not [headers for _, _, headers in storage.requests if "authorization" in headers]


def test_gated(hub, folders):
    hub.repositories[TINY] = [Repository(folders["tiny"], gated=True)]
    with pytest.raises(InputError, match="is gated: accept its licence"):
        load_hub(TINY, token=False)
    assert load_hub(TINY, token="let-me-in").name == "tiny-vits"
    # What one visitor was allowed to load lies in the cache now; another is still refused.
    with pytest.raises(InputError, match="is gated"):
        load_hub(TINY, token=False)


def _missing_repository(hub, folder):
    hub.repositories.clear()


def _of_bert(hub, folder):
    edit_json(folder / "config.json", model_type="bert")


def _only_a_pickle(hub, folder):
    (folder / "model.safetensors").unlink()


def _no_config(hub, folder):
    (folder / "config.json").unlink()


def _huge(hub, folder):
    hub.declared_sizes["model.safetensors"] = 50 * 2**30


def _huge_config(hub, folder):
    hub.declared_sizes["config.json"] = 2**30


def _size_not_stated(hub, folder):
    hub.declared_sizes["model.safetensors"] = None


def _access_refused(hub, folder):
    hub.status = 403


def _not_a_hub(hub, folder):
    hub.status = 204


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_missing_repository, "There is no model someone/tiny-vits"),
        (_of_bert, "someone/tiny-vits is a bert checkpoint, not vits"),
        (_only_a_pickle, r"save_pretrained"),
        (_no_config, "has no config.json"),
        (_huge, r"is 51,200\.\d MiB, more than the 2,048\.0 MiB accepted"),
        (_huge_config, "more than"),
        (_size_not_stated, "does not say how large"),
        (_access_refused, "refuses access"),
        (_not_a_hub, "cannot be read"),
    ],
)
def test_refused_before_the_weights(hub, folders, tmp_path, spoil, message):
    folder = _copy(folders["tiny"], tmp_path / "spoiled")
    hub.repositories[TINY] = [Repository(folder)]
    spoil(hub, folder)
    with pytest.raises(InputError, match=message) as caught:
        load_hub(TINY)
    assert "\n" not in str(caught.value)
    assert not [path for path in hub.paths("GET") if path.endswith((".safetensors", ".bin"))]


@pytest.mark.parametrize("bug", [TypeError, KeyError, RuntimeError])
def test_a_bug_of_our_own_is_not_reported_as_the_hubs(hub, monkeypatch, bug):
    def broken(*_):
        raise bug("a bug")

    with pytest.raises(bug, match="a bug") as caught:
        load_hub(TINY, progress=Progress(broken))  # huggingface_hub is on the way
    assert not isinstance(caught.value, InputError)
    monkeypatch.setattr(hub_module, "stated_licence", broken)
    with pytest.raises(bug, match="a bug") as caught:
        load_hub(TINY)
    assert not isinstance(caught.value, InputError)


def test_errors_of_the_hub_have_types(hub, folders):
    hub.status = 500
    with pytest.raises(HubError):
        load_hub(TINY)
    for hub.status in (401, 403):
        with pytest.raises(LoginError):
            load_hub(TINY)
    hub.status = None
    hub.repositories[TINY] = [Repository(folders["tiny"], gated=True)]
    with pytest.raises(LoginError, match="gated"):
        load_hub(TINY, token=False)


def test_missing_revision(hub):
    with pytest.raises(InputError, match="no revision 'v9'"):
        load_hub(TINY, revision="v9")
    with pytest.raises(InputError, match="is no revision"):
        load_hub(TINY, revision="../../../etc")
    assert len(hub.requests) == 1


def test_max_bytes(hub):
    with pytest.raises(InputError, match="accepted"):
        load_hub(TINY, max_bytes=10_000)


def test_connection_lost_half_way_then_a_retry(hub, cache):
    hub.cut_after = 5000
    with pytest.raises(InputError, match=r"(lost|incomplete).*try again"):
        load_hub(TINY)
    assert not [
        path
        for path in cache.rglob("*")
        if "model.safetensors" in path.name or ".incomplete" in path.name
    ]
    hub.cut_after = None
    assert load_hub(TINY).name == "tiny-vits"


def test_a_server_that_sends_more_than_it_declared_is_cut_off(hub, cache):
    hub.endless = "model.safetensors"
    with pytest.raises(InputError, match="sent more"):
        load_hub(TINY)
    assert hub.endless_sent < 200 * 2**20
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 2**20


def test_full_disk(hub, monkeypatch):
    from huggingface_hub import file_download

    def http_get(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_download, "http_get", http_get)
    with pytest.raises(InputError, match="The disk is full"):
        load_hub(TINY)


def test_from_the_cache_when_the_hub_is_down_or_away(hub, monkeypatch):
    from huggingface_hub import constants

    online = load_hub(TINY)
    hub.status = 503
    down = load_hub(TINY)
    assert down.origin == Origin("hugging-face", TINY, online.origin.revision, "cc-by-4.0")
    assert all(
        torch.equal(tensor, _weights(down)[name]) for name, tensor in _weights(online).items()
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load_hub(TINY).origin.revision == online.origin.revision
    assert fetch_snapshot(TINY, revision=online.origin.revision).revision == online.origin.revision
    with pytest.raises(InputError, match="cannot be reached"):
        load_hub("someone/never-loaded")
    with pytest.raises(InputError, match="cannot be reached"):
        load_hub(TINY, revision="v1")


def test_half_a_download_in_the_cache_is_no_voice(hub):
    hub.cut_after = 5000
    with pytest.raises(InputError, match="try again"):
        load_hub(TINY)
    hub.status = 503
    with pytest.raises(InputError, match="cannot be reached"):
        load_hub(TINY)


@pytest.mark.slow
def test_end_to_end_in_a_process_of_its_own(hub, tmp_path):
    """Nothing is patched: HF_ENDPOINT and HF_HOME, then HF_HUB_OFFLINE, as a user sets them."""
    script = (
        "import json, sys\n"
        "from vits_prune.voices.load import load_hub\n"
        "voice = load_hub(sys.argv[1])\n"
        "ids = list(next(voice.tokenizer.sentences('hi')).ids)\n"
        "print(json.dumps([voice.origin.revision, voice.sampling_rate, ids]))\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = {
        **clean,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(**more):
        command = [sys.executable, "-c", script, TINY]
        return json.loads(
            subprocess.run(
                command, env={**env, **more}, cwd=ROOT, capture_output=True, check=True, text=True
            ).stdout
        )

    online = run()
    assert online[:2] == [hub.repositories[TINY][0].commit, 16_000]
    hub.requests.clear()
    assert run(HF_HUB_OFFLINE="1") == online
    assert hub.requests == []


def test_a_servers_cache_is_trimmed_to_a_bound_and_keeps_what_was_just_loaded(hub, folders, cache):
    hub.repositories["someone/other"] = [Repository(folders["other"])]
    load_hub(TINY, token=False)
    load_hub("someone/other", token=False)
    trim_cache(1 << 30, keep="someone/other")
    assert {path.name for path in cache.glob("models--*")} == {
        "models--someone--tiny-vits",
        "models--someone--other",
    }
    trim_cache(0, keep="someone/other")
    assert {path.name for path in cache.glob("models--*")} == {"models--someone--other"}
    assert load_hub("someone/other", token=False).origin.reference == "someone/other"


def test_a_download_can_be_kept_apart_from_the_shared_cache(hub, cache, tmp_path):
    apart = tmp_path / "apart"
    load_hub(TINY, token=False, cache_dir=apart)
    assert list(apart.glob("models--*"))
    assert not list(cache.glob("models--*"))


def test_without_the_hub_the_anonymous_get_only_what_was_once_public(hub, monkeypatch):
    from huggingface_hub import constants

    load_hub(TINY, token="hf_visitor")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_hub(TINY, token="hf_visitor").name == "tiny-vits"
    with pytest.raises(InputError, match="cannot be reached"):
        load_hub(TINY, token=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load_hub(TINY, token=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_hub(TINY, token=False).name == "tiny-vits"
