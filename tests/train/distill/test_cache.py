"""A teacher on disk is the teacher, within what float16 keeps; a file that is not what was written is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_runs
import torch

from labkit.train.distill import CachedTeacher, SparseLogits, TeacherCache, sparse_divergences, write_cache
from labkit.train.distill.objective import teacher_logits
from labkit.train.feed import Micro

N, S, K = 10, 12, 5


def teacher():
    return small_runs.model(4)


def write(path, **changes):
    options = {"sequences": N, "sequence": S, "k": K, "batch": 4, **changes}
    return write_cache(path, teacher(), small_runs.Source(), **options)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_is_read_is_what_the_teacher_said(tmp_path, temperature):
    write(tmp_path / "cache.bin", temperature=temperature)
    source = CachedTeacher(TeacherCache.open(tmp_path / "cache.bin", teacher()))
    drawn, model = small_runs.Source(), teacher()
    for size in (4, 4, 2):
        ours, theirs = source.next(size, S), drawn.next(size, S)
        kept = SparseLogits.of(teacher_logits(model, theirs.ids_BS), K, temperature=temperature)
        assert torch.equal(ours.ids_BS, theirs.ids_BS)
        assert torch.equal(ours.labels_BS, theirs.labels_BS)
        assert torch.equal(ours.teacher.ids_BSK, kept.ids_BSK)
        torch.testing.assert_close(ours.teacher.logp_BSK, kept.logp_BSK, atol=4e-3, rtol=0)
        torch.testing.assert_close(ours.teacher.tail_BS, kept.tail_BS)
        mass = ours.teacher.logp_BSK.exp().sum(-1) + ours.teacher.tail_BS.exp()
        torch.testing.assert_close(mass, torch.ones_like(mass))
        names = [source.domains[i] for i in ours.domain_BS[:, 0]]
        assert names == list(theirs.domains)
        student = torch.randn(size, S, 256)
        near = sparse_divergences(student, ours.teacher), sparse_divergences(student, kept)
        torch.testing.assert_close(*near, atol=4e-3, rtol=0)


@pytest.mark.parametrize("estimator", ["topk", "sampled"])
def test_other_estimators_keep_their_name(tmp_path, estimator):
    write(tmp_path / "cache.bin", estimator=estimator)
    kept = CachedTeacher(TeacherCache.open(tmp_path / "cache.bin")).next(3, S).teacher
    assert kept.estimator == estimator
    assert (kept.tail_BS == float("-inf")).all()
    if estimator == "topk":
        torch.testing.assert_close(kept.logp_BSK.exp().sum(-1), torch.ones(3, S))
    else:
        assert torch.equal(kept.ids_BSK, CachedTeacher(write(tmp_path / "again.bin", estimator=estimator)).next(
            3, S).teacher.ids_BSK)  # fmt: skip


def test_labels_that_are_left_out_stay_out(tmp_path):
    class Masked(small_runs.Source):
        def next(self, batch, sequence):
            some = super().next(batch, sequence)
            some.labels_BS[:, 3:6] = -100
            return some

    cache = write_cache(tmp_path / "c.bin", teacher(), Masked(), sequences=3, sequence=S, k=K)
    micro = Micro.of(CachedTeacher(cache).next(3, S), names=cache.domains)
    assert (micro.target_BS == -100).sum(1).tolist() == [4, 4, 4]
    assert micro.teacher.vocab_size == 256


def test_it_goes_round_and_its_position_can_be_taken_up(tmp_path):
    source = CachedTeacher(write(tmp_path / "cache.bin"))
    first = source.next(7, S)
    state = json.loads(json.dumps(source.state()))
    second = source.next(7, S)
    assert torch.equal(second.ids_BS[3:], first.ids_BS[:4])
    assert source.epochs == 1.4
    source.load(state)
    assert torch.equal(source.next(7, S).ids_BS, second.ids_BS)
    other = CachedTeacher(write(tmp_path / "other.bin", k=K + 1))
    with pytest.raises(ValueError, match="of cache"):
        other.load(state)
    with pytest.raises(ValueError, match=r"sequence is 8, but the cache's sequences have 12"):
        source.next(2, 8)


def test_it_is_as_small_as_it_says_and_mapped_not_read(tmp_path):
    cache = write(tmp_path / "cache.bin")
    assert cache.bytes_per_token == 2 + 1 + 1 + K * 4 + 4
    assert (tmp_path / "cache.bin").stat().st_size == N * S * cache.bytes_per_token
    assert isinstance(cache.rows, np.memmap)
    assert not cache.rows.flags.writeable
    assert cache.flops > 0


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def _empty(path):
    path.write_bytes(b"")


def _say(path, **changes):
    sidecar = path.with_name(f"{path.name}.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


DAMAGES = {
    "a bit": (_flip, "checksum differs"),
    "the end": (_cut, "bytes"),
    "everything": (_empty, "bytes"),
    "the temperature": (lambda path: _say(path, temperature=2.0), "not what was written"),
    "the vocabulary": (lambda path: _say(path, vocab_size=300), "not what was written"),
    "the format": (lambda path: _say(path, format=2), "not what was written"),
    "an unknown key": (lambda path: _say(path, more=1), "not what was written"),
    "the sidecar": (lambda path: path.with_name(f"{path.name}.json").write_text("{"), "not what was written"),
    "no sidecar": (lambda path: path.with_name(f"{path.name}.json").unlink(), "is missing"),
    "no rows": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_refused(tmp_path, damage):
    path = tmp_path / "cache.bin"
    write(path)
    TeacherCache.open(path)
    harm, told = DAMAGES[damage]
    harm(path)
    with pytest.raises(ValueError, match=told):
        TeacherCache.open(path)


def test_another_teacher_or_vocabulary_is_refused(tmp_path):
    write(tmp_path / "cache.bin")
    other = teacher()
    other.layers[1].ffn.router.expert_bias_E[0] += 1e-3
    with pytest.raises(ValueError, match="was made by teacher"):
        TeacherCache.open(tmp_path / "cache.bin", other)
    with pytest.raises(ValueError, match="vocabulary of 256, not 512"):
        TeacherCache.open(tmp_path / "cache.bin", vocab_size=512)


def test_a_write_that_fails_leaves_the_old_cache(tmp_path):
    class Breaks(small_runs.Source):
        def next(self, batch, sequence):
            if self.count == 1:
                raise RuntimeError("no more text")
            return super().next(batch, sequence)

    path = tmp_path / "cache.bin"
    write(path)
    with pytest.raises(RuntimeError, match="no more text"):
        write_cache(path, teacher(), Breaks(), sequences=8, sequence=S, k=K, batch=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache.bin", "cache.bin.json"]
    TeacherCache.open(path, teacher())


def test_labels_that_are_not_the_text_and_bad_numbers_are_refused(tmp_path):
    class Shuffled(small_runs.Source):
        def next(self, batch, sequence):
            some = super().next(batch, sequence)
            some.labels_BS[:] = (some.labels_BS + 1) % 256
            return some

    with pytest.raises(ValueError, match="neither its own token"):
        write_cache(tmp_path / "c.bin", teacher(), Shuffled(), sequences=3, sequence=S, k=K)
    for changes, told in (({"sequences": 0}, "sequences is 0"), ({"k": 999}, "k is 999"), ({"estimator": "x"}, "'x'")):
        with pytest.raises(ValueError, match=told):
            write(tmp_path / "c.bin", **changes)
