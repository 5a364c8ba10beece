"""The Hub through the real huggingface-hub against a small Hub on this machine, and a handmade cache folder."""

import errno
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from afs_mlx.clients.hub import HubListing, hub_download, hub_size
from afs_mlx.core.errors import AfsError, ExitCode, MissingError
from afs_mlx.core.model_folder import missing_files
from afs_mlx.engine.bases.location import hub_snapshot

COMMIT = "c" * 40
REPO = "owner/model"
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"a" * 3000,
    "model-00002-of-00002.safetensors": b"b" * 2000,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache",
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "README.md": b"read me",
    "original/model.safetensors": b"twice",
}
WANTED = {name: data for name, data in FILES.items() if not name.endswith((".py", ".bin", ".md")) and "/" not in name}


class Hub(BaseHTTPRequestHandler):
    """The few routes that huggingface-hub asks for; `status` makes every answer that error."""

    status: tuple[int, str] | None = None
    fetched: list[str] = []  # noqa: RUF012 - reset for each test

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if self.status:
            self.answer(self.status[0], b"", {"X-Error-Code": self.status[1], "X-Error-Message": "no"})
        elif path.startswith("/api/models/"):
            self.answer(200, self.listing("/tree/" in path), {"Content-Type": "application/json"})
        else:
            name = path.split(f"/resolve/{COMMIT}/")[-1]
            if self.command == "GET":
                self.fetched.append(name)
            self.answer(200, FILES[name], {"ETag": f'"{name.encode().hex()}"', "X-Repo-Commit": COMMIT})

    def listing(self, tree: bool) -> bytes:
        if tree:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": name.encode().hex()}
                for name, data in FILES.items()
            ]
            return json.dumps(entries).encode()
        siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
        return json.dumps({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}).encode()

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of the test's own, and no Hub at all (the discard port refuses at once)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    point_to(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "hub"


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(Hub, "status", None)
    monkeypatch.setattr(Hub, "fetched", [])
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("hub")
def test_the_size_counts_what_would_be_fetched() -> None:
    listing = hub_size(REPO)
    assert listing == HubListing(REPO, COMMIT, tuple(sorted(WANTED)), sum(map(len, WANTED.values())))


def test_a_download_brings_no_code_and_reports_bytes(
    hub: type[Hub], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []
    folder = hub_download(REPO, on_progress=lambda done, total: seen.append((done, total)))
    assert folder == cache / "models--owner--model" / "snapshots" / COMMIT
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == WANTED
    assert max(seen) == (sum(map(len, WANTED.values())),) * 2
    assert hub_snapshot(REPO) == folder
    assert capfd.readouterr() == ("", "")
    hub.fetched.clear()
    assert hub_download(REPO) == folder
    assert hub.fetched == []


def test_a_repository_without_weights_is_no_model(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(FILES):
        if name.startswith("model"):
            monkeypatch.delitem(FILES, name)
    with pytest.raises(AfsError, match=r"no complete model: model\.safetensors missing"):
        hub_download(REPO)


@pytest.mark.parametrize("call", [hub_size, hub_download])
@pytest.mark.parametrize(
    ("status", "match", "fix"),
    [
        ((404, "RepoNotFound"), "no such repository", "check the name"),
        ((401, "RepoNotFound"), "no such repository", "hf auth login"),
        ((403, "GatedRepo"), "accepted its licence", "accept its licence"),
        ((404, "RevisionNotFound"), "no revision 'v9'", "leave the revision out"),
        ((418, ""), "the Hub answered 418", "try again later"),
    ],
)
def test_refusals_of_the_hub_become_remedies(hub: type[Hub], call, status, match: str, fix: str) -> None:
    hub.status = status
    with pytest.raises(MissingError, match=match) as caught:
        call(REPO, "v9")
    assert fix in caught.value.fix
    assert caught.value.where == REPO


@pytest.mark.parametrize("call", [hub_size, hub_download])
def test_without_a_network_it_names_the_command(call) -> None:
    with pytest.raises(MissingError, match="the Hub cannot be reached") as caught:
        call(REPO)
    assert caught.value.code == ExitCode.MISSING
    assert "afs-mlx pull" in caught.value.fix
    assert hub_snapshot(REPO) is None


@pytest.mark.parametrize("call", [hub_size, hub_download])
def test_a_malformed_name_is_an_error(call) -> None:
    with pytest.raises(AfsError, match="not a repository name"):
        call("owner/../model")


@pytest.mark.parametrize(
    ("error", "match", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full", ExitCode.ERROR),
        (RuntimeError("Data processing error: No space left on device"), "the disk is full", ExitCode.ERROR),
        (PermissionError(errno.EACCES, "denied"), "no permission to write", ExitCode.ERROR),
        (RuntimeError("cas server closed"), "the download broke off: cas server closed", ExitCode.ERROR),
        (TimeoutError("slow"), "the Hub cannot be reached", ExitCode.MISSING),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE forbids", ExitCode.MISSING),
    ],
)
def test_a_broken_download_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, match: str, code: ExitCode
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(AfsError, match=match) as caught:
        hub_download(REPO)
    assert caught.value.code == code
    assert caught.value.fix


def make_snapshot(cache: Path, commit: str, *without: str) -> Path:
    """A snapshot as huggingface-hub lays it out: links to blobs."""
    root = cache / "models--owner--model"
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for name, data in WANTED.items():
        if name not in without:
            (root / "blobs" / name).write_bytes(data)
            (folder / name).symlink_to(f"../../blobs/{name}")
    return folder


@pytest.mark.parametrize("lost", [name for name in WANTED if name not in ("chat_template.jinja", "LICENSE")])
def test_half_a_download_does_not_count(cache: Path, lost: str) -> None:
    folder = make_snapshot(cache, COMMIT, lost)
    if lost == "model.safetensors.index.json":  # the shards' own names say that they are all there
        assert missing_files(folder) == []
    else:
        assert missing_files(folder) == [lost]
        assert hub_snapshot(REPO) is None


def test_a_link_to_a_blob_that_is_gone_does_not_count(cache: Path) -> None:
    make_snapshot(cache, COMMIT)
    assert hub_snapshot(REPO)
    (cache / "models--owner--model" / "blobs" / "model-00002-of-00002.safetensors").unlink()
    assert hub_snapshot(REPO) is None


def test_numbered_shards_without_an_index_must_all_be_there(cache: Path) -> None:
    folder = make_snapshot(cache, COMMIT, "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    assert missing_files(folder) == ["model-00001-of-00002.safetensors"]


def test_a_broken_index_does_not_count(cache: Path) -> None:
    folder = make_snapshot(cache, COMMIT)
    (folder / "model.safetensors.index.json").write_text("{")
    assert missing_files(folder) == ["model.safetensors.index.json with a weight_map"]
    assert hub_snapshot(REPO) is None


def test_main_comes_before_other_snapshots_if_it_is_whole(cache: Path) -> None:
    main = make_snapshot(cache, "a" * 40)
    other = make_snapshot(cache, "b" * 40)
    refs = cache / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    assert hub_snapshot(REPO) == main
    (main / "config.json").unlink()
    assert hub_snapshot(REPO) == other
