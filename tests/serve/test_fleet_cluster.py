"""What a Ray of our own leaves behind: nothing that is not in use, and the environment as it was."""

from __future__ import annotations

import os

from labkit.core.environ import environment
from labkit.serve.fleet import cluster


def test_a_folder_in_use_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PLACE", str(tmp_path))
    mine, other = tmp_path / f"lk{os.getpid()}-a", tmp_path / "lkeys-a"
    gone = tmp_path / "lk999999999-a"
    for folder in (mine, other, gone):
        folder.mkdir()
    cluster.forget_the_dead()
    assert [folder.exists() for folder in (mine, other, gone)] == [True, True, False]


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    before = dict(os.environ)
    with environment(cluster.QUIET):
        assert os.environ["RAY_DEDUP_LOGS"] == "0"
    assert dict(os.environ) == before
