"""`labkit fleet serve`, but for the fleet itself: what it publishes, says, follows, and refuses before Ray starts."""

from __future__ import annotations

import shlex
import threading
from types import SimpleNamespace

import pytest

from labkit.course import cli, fleet
from labkit.serve.fleet.fleet import RolloutRefused
from labkit.serve.registry import open_registry


class StandIn:
    """A fleet whose alias moves as it is written; at the end of the script it is asked to end."""

    def __init__(self, *script):
        self.version, self.script, self.stop = "v1", list(script), threading.Event()
        self.url, self.plan = "http://127.0.0.1:8000", SimpleNamespace(name="m", model="m@prod", replicas=2)

    def rollout(self):
        step = self.script.pop(0)
        if not self.script:
            self.stop.set()
        if isinstance(step, Exception):
            raise step
        self.version = step
        return step


def test_the_alias_is_followed_and_a_refusal_is_said_once(capsys):
    refused = RolloutRefused("m@prod is refused: a shard is altered; v2 goes on")
    made = StandIn("v1", "v2", refused, refused, "v2", "v1")
    fleet._live(made, made.stop, 0.001)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["m@prod is v2 now, v1 before", "m@prod is v1 now, v2 before"]
    assert err.splitlines() == [str(refused)]


def test_what_is_printed_can_be_copied():
    lines = fleet.greeting(StandIn("v1")).splitlines()
    assert "serving m v1 on http://127.0.0.1:8000 from 2 replicas" in lines[0]
    assert [shlex.split(line)[0] for line in lines[1:3]] == ["curl", "python"]


def test_the_courses_own_model_is_published_once(tmp_path):
    for _ in range(2):
        fleet._need_own(str(tmp_path))
    registry = open_registry(str(tmp_path))
    assert registry.ids("four-domains") == ["v1"]
    assert registry.aliases("four-domains") == {"prod": "v1"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["four-domains", "--replicas", "2"], "an alias"),
        (["four-domains@prod", "--replicas", "0"], "replicas is 0"),
        (["four-domains@prod", "--policy", "best"], "choose from round_robin"),
        (["nobody@prod"], "nobody"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.setattr("sys.argv", ["labkit", "fleet", "serve", *words, "--store", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert told in capsys.readouterr().err
