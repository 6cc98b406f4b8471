"""The bench: contestants take turns, checks tell right from wrong, and whoever fails is listed while the rest goes on.

Only tiny shapes on the CPU, where our kernels are interpreted; no time is asserted.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from labkit.core.runtime import Unavailable
from labkit.kernels import bench, reference
from labkit.kernels.bench import attention, moe, peers, rounds, run, shapes, topk
from labkit.kernels.bench.calls import BOTH, FORWARD, GRAPH, timed
from labkit.kernels.bench.error import relative
from labkit.kernels.bench.plan import settle
from labkit.kernels.bench.result import LEFT_OUT

CPU = torch.device("cpu")
BUILT_IN = [name for name in moe.CONTESTANTS if name != "torch grouped_mm"]
MOE = shapes.MoEShape("small", 13, 24, 8, 5, 2)


def plan(chosen=None, **changed):
    made = {"device": CPU, "dtype": torch.float32, "rounds": 2, "repeats": 1, **changed}
    return bench.Plan(chosen or {"moe": [MOE]}, **made)


# Shapes


def test_all_shapes_of_a_subject_are_taken_unless_some_are_named():
    assert list(shapes.choose(["moe"])) == ["moe"]
    assert len(shapes.choose(["moe"])["moe"]) == 6
    both = shapes.choose(["topk", "moe"], ["olmoe-16k"])
    assert both == {"topk": [shapes.SHAPES["topk"]["olmoe-16k"]], "moe": [shapes.SHAPES["moe"]["olmoe-16k"]]}
    assert list(shapes.choose([], ["qwen3-64"])) == ["decode"]
    assert shapes.choose([], tiny=True) == {subject: list(named.values()) for subject, named in shapes.TINY.items()}


def test_a_shape_of_ones_own_goes_where_its_letters_fit():
    found = shapes.choose([], typed=["T=4,E=8,K=2", "S=64,H=4,d=32,G=2"])
    assert found == {
        "topk": [shapes.RouterShape("T4-E8-K2", 4, 8, 2)],
        "attention": [shapes.AttentionShape("B1-H4-G2-S64-d32", 1, 4, 2, 64, 32)],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["moe"], ["olmo"]), r"no shape 'olmo'; known are for moe: olmoe-4k, .*dsv3-8k"),
        ((["moes"],), "nothing called 'moes' to measure; choose from moe, decode, quant, topk, attention"),
        (
            (["moe", "attention"], ["olmoe-4k"]),
            "attention has none of the named shapes; known are for attention: s1024",
        ),
        ((["moe"], (), ["T=4,E=8,K=2"]), "letters of nothing .* moe: T, D, F, E, K"),
        ((["topk"], (), ["T=4,E=8"]), "letters of nothing"),
        ((["topk"], (), ["T=4,E=8,K=x"]), "the part 'K=x'"),
        ((["topk"], (), ["T=4,T=5,E=8,K=2"]), "says T twice"),
        ((["topk"], (), ["T=4,E=8,K=9"]), "K is 9, more than E"),
        ((["topk"], (), ["T=0,E=8,K=2"]), "T is 0; give 1 or more"),
        ((["attention"], (), ["S=4,H=6,G=4,d=8"]), "G is 4, which does not divide the 6 query heads"),
    ],
)
def test_a_wrong_shape_is_explained(arguments, words):
    with pytest.raises(ValueError, match=words):
        shapes.choose(*arguments)


def test_work_is_counted_as_the_issue_counts_it():
    olmoe = shapes.SHAPES["moe"]["olmoe-16k"]
    assert olmoe.flops(False) == 6 * 16384 * 8 * 2048 * 1024
    assert olmoe.flops(True) == 3 * olmoe.flops(False)
    assert olmoe.saved(2) == 512 * 2**20
    one = shapes.SHAPES["decode"]["olmoe-1"]
    assert one.bytes(False, 2, visited=8) == 2 * (8 * 3 * 2048 * 1024 + 2 * 2048)
    assert shapes.AttentionShape("a", 1, 2, 1, 8, 4).flops(False) == 4 * 2 * 8 * 8 * 4 // 2


# Inputs, references, errors


def test_routing_is_skewed_and_the_same_for_a_seed():
    big = shapes.MoEShape("big", 4096, 8, 8, 64, 8)
    case, again, other = (moe.draw(big, torch.float32, CPU, seed) for seed in (0, 0, 1))
    assert 2 < case.load < 8
    assert torch.equal(case.topk_ids_TK, again.topk_ids_TK)
    assert torch.equal(case.down_EDF, again.down_EDF)
    assert not torch.equal(case.topk_ids_TK, other.topk_ids_TK)
    assert torch.allclose(case.topk_scores_TK.sum(-1), torch.ones(4096))
    assert moe.draw(shapes.MoEShape("one", 1, 8, 8, 64, 8), torch.float32, CPU, 0).visited == 8


def test_what_is_wanted_of_experts_is_what_the_reference_gives():
    case = moe.draw(MOE, torch.float32, CPU, 0)
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in case.leaves.items()}
    y = reference.experts_loop(wide["x"], case.topk_ids_TK, wide["scores"], wide["gate_up"], wide["down"])
    grads = torch.autograd.grad(y, list(wide.values()), case.grad.double())
    wanted = case.wanted(backward=True)
    assert wanted.keys() == {"output", *case.leaves}
    for name, want in zip(("output", *wide), (y, *grads), strict=True):
        assert torch.allclose(wanted[name], want), name


def test_what_is_wanted_of_attention_is_what_torch_gives():
    case = attention.draw(shapes.AttentionShape("a", 2, 4, 2, 9, 8), torch.float32, CPU, 0)
    q, k, v = (leaf.detach().double().requires_grad_() for leaf in case.leaves.values())
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    grads = torch.autograd.grad(y, (q, k, v), case.grad.double())
    wanted = case.wanted(backward=True)
    for name, want in zip(("output", "q", "k", "v"), (y, *grads), strict=True):
        assert torch.allclose(wanted[name], want), name


def test_a_router_may_order_equal_experts_as_it_likes_but_not_choose_worse_ones():
    case = topk.draw(shapes.RouterShape("r", 19, 6, 2), torch.float32, CPU, 0)
    case.logits_TE.data.copy_(case.logits_TE.detach().round())  # many ties
    wanted = case.wanted(False)
    ids, weights = (tensor.detach() for tensor in topk.plain(case.logits_TE, 2))
    assert max(case.errors(wanted, (ids.flip(1), weights.flip(1)), {}).values()) < 1e-6
    assert case.errors(wanted, (ids.flip(1), weights), {})["ids"] > 1e-2
    worst, _ = topk.plain(-case.logits_TE, 2)
    right_weights_of_wrong_ids = reference.weigh(reference.scores(case.logits_TE.detach()), worst)
    assert case.errors(wanted, (worst, right_weights_of_wrong_ids), {})["weights"] > 1e-2
    assert case.errors(wanted, (ids, weights, torch.zeros(6, dtype=torch.int64)), {})["counts"] == 1.0


def test_an_error_is_relative_and_a_wrong_shape_no_number():
    wanted = torch.randn(5, 7, 3)
    assert relative(wanted * 1.25, wanted) == pytest.approx(0.25)
    assert relative(torch.zeros(0, 2), torch.zeros(0, 2)) == 0
    assert math.isnan(relative(wanted / 0 * 0, wanted))
    with pytest.raises(ValueError, match=r"it gave shape \(5, 7\); expected \(5, 7, 3\)"):
        relative(wanted[..., 0], wanted)


# Turns


def test_in_turns_everyone_stands_everywhere_equally_often():
    names = ["a", "b", "c", "d"]
    places = [rounds.order(names, number) for number in range(8)]
    for name in names:
        assert sorted(order.index(name) for order in places) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_everyone_runs_once_a_round_and_a_failure_stops_only_itself():
    ran = []

    def fails():
        ran.append("b")
        if ran.count("b") == 2:
            raise RuntimeError("no more")

    seconds, failed = rounds.take_turns(
        {"a": lambda: ran.append("a"), "b": fails, "c": lambda: ran.append("c")}, CPU, rounds=4, repeats=1
    )
    assert (ran.count("a"), ran.count("b"), ran.count("c")) == (4, 2, 4)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "c": 4}
    assert failed == {"b": "in round 2 of 4: RuntimeError: no more"}


# Peers

FILE = """
import torch
from labkit.kernels import reference

def ours(x, ids, scores, up, down):
    return reference.experts_sorted(x, ids, scores, up, down)

def peers(bench):
    def transposed(case):
        mine = case.down_EDF.detach().mT.contiguous().requires_grad_()
        def forward():
            return ours(case.x_TD, case.topk_ids_TK, case.topk_scores_TK, case.gate_up_E2FD, mine.mT)
        leaves = {"x": case.x_TD, "gate_up": case.gate_up_E2FD, "down": mine}
        return bench.Call(forward, leaves=leaves, restore={"down": lambda grad: grad.mT}, note="version 7")

    def forward_only(case):
        return lambda: ours(case.x_TD, case.topk_ids_TK, case.topk_scores_TK, case.gate_up_E2FD, case.down_EDF)

    def absent(case):
        import a_package_that_nobody_has

    def wrong(case):
        return bench.Call(lambda: case.x_TD * 2, leaves={"x": case.x_TD})

    def misshapen(case):
        return lambda: case.x_TD[:, :1]

    def strange(case):
        return bench.Call(lambda: case.x_TD * 2, leaves={"y": case.x_TD})

    makes = {name: make for name, make in locals().items() if callable(make) and name != "bench"}
    return {name: {"moe": make} for name, make in makes.items()}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_peers_take_part_and_whoever_cannot_is_listed_with_a_reason(file):
    found, failed = peers.load([file], bench)
    forward, both = bench.measure(plan(peers=found, failed=failed, without=BUILT_IN))
    assert (forward.mode, both.mode) == (FORWARD, BOTH)
    right = {each.name: each for each in both.measured if not each.wrong("float32")}
    assert right.keys() == {"torch grouped_mm", "transposed"}
    assert right["transposed"].errors.keys() == {"output", "x", "gate_up", "down"}
    assert right["transposed"].note == "version 7; no gradient of scores"
    ran = {"torch grouped_mm", "transposed", "forward_only", "wrong", "strange"}
    assert {each.name for each in forward.measured} == ran
    misshapen = next(each.reason for each in forward.absent if each.name == "misshapen")
    assert misshapen == "ValueError: it gave shape (13, 1); expected (13, 24)"
    told = {each.name: each.reason for each in both.absent}
    assert told["forward_only"] == "it has no backward pass"
    assert told["absent"] == "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
    assert told["strange"] == "ValueError: it has leaves ['y']; the case's are x, scores, gate_up, down"
    assert {name for name, why in told.items() if why == LEFT_OUT} == set(BUILT_IN)
    everyone = {*moe.CONTESTANTS, *found}
    for result in (forward, both):
        assert {each.name for each in (*result.measured, *result.absent)} == everyone
        assert all(len(each.seconds) == 2 for each in result.measured)


def test_a_file_that_cannot_be_read_is_listed_in_every_result(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import a_package_that_nobody_has")
    found, failed = peers.load([broken], bench)
    results = list(bench.measure(plan(peers=found, failed=failed, without=BUILT_IN, direction="forward")))
    assert len(results) == 1
    assert results[0].absent[-1] == bench.Absent(
        "broken", "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1", r"mine.py defines no function peers\(bench\)"),
        ("def peers(bench): return [1]", "gave a list; expected a dict from names to subjects"),
        ("def peers(bench): return {'a': len}", "'a' has a builtin_function_or_method; expected a dict by subject"),
        (
            "def peers(bench): return {'a': {'mo': print}}",
            "'a' offers 'mo'.*one of moe, decode, quant, topk, attention",
        ),
    ],
)
def test_a_file_that_breaks_the_protocol_is_explained_at_once(tmp_path, source, words):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=words):
        peers.load([path], bench)


def test_a_name_stands_for_one_contestant(file, tmp_path):
    again = tmp_path / "again.py"
    again.write_text("def peers(bench): return {'wrong': {'moe': print}}")
    with pytest.raises(ValueError, match="'wrong', which another file has"):
        peers.load([file, again], bench)
    with pytest.raises(ValueError, match="labkit, which is built in"):
        plan(peers={"labkit": {"moe": print}})
    with pytest.raises(FileNotFoundError, match="no file of peers"):
        peers.load([tmp_path / "none.py"], bench)


# Plans


def test_modes_follow_the_subject_the_direction_and_the_device():
    on_gpu = plan(device=torch.device("cuda"), graph=True)
    assert on_gpu.modes("moe") == on_gpu.modes("topk") == (FORWARD, GRAPH, BOTH)
    assert on_gpu.modes("decode") == (GRAPH,)
    assert plan().modes("decode") == (FORWARD,)
    assert plan(direction="forward").modes("attention") == (FORWARD,)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"rounds": 0}, ValueError, "rounds is 0"),
        ({"direction": "back"}, ValueError, "direction is 'back'; choose one of forward, both"),
        ({"graph": True}, Unavailable, "there is no GPU in use"),
        ({"without": ["me"]}, ValueError, "nobody is called 'me'.*'labkit'"),
        ({"chosen": shapes.choose(["moe"], ["olmoe-4k"])}, Unavailable, "olmoe-4k: on a CPU kernels are interpreted"),
    ],
)
def test_a_plan_that_cannot_be_is_explained(changed, error, words):
    with pytest.raises(error, match=words):
        plan(**changed)


def test_a_device_that_is_not_there_is_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match=r"device is 'cuda', but .*Instead: 'cpu'"):
        settle("cuda")
    with pytest.raises(ValueError, match="dtype is 'int8'; choose one of auto, bfloat16"):
        settle("cpu", "int8")


def test_graphs_are_refused_by_who_waits_for_the_device():
    case = replace(moe.draw(MOE, torch.float32, CPU, 0), device=torch.device("cuda"))
    with pytest.raises(Unavailable, match="waits for the device"):
        timed(bench.Call(lambda: case.x_TD, graphs=False), case, GRAPH)


def test_who_breaks_the_device_is_named_wherever_nothing_could_be_measured_after_it(file, monkeypatch):
    found, failed = peers.load([file], bench)
    name = next(iter(found))
    broken = []

    def settle(device):  # as after an illegal address: every wait fails from then on
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stand = run._stand

    def watched(plan, who, *rest):
        if who == name:
            broken.append(who)
        return stand(plan, who, *rest)

    monkeypatch.setattr(run, "_settle", settle)
    monkeypatch.setattr(run, "_stand", watched)
    chosen = {"moe": [MOE, replace(MOE, name="next")]}
    said = []
    results = list(bench.measure(plan(chosen, direction="forward", peers=found, failed=failed), said.append))
    assert [result.shape["name"] for result in results] == ["small", "next"]
    assert len(said) == 1
    for result in results:
        assert not result.measured
        (why,) = {each.reason for each in result.absent if each.name in BUILT_IN}
        assert why.startswith(
            f"nothing could be measured: {name} broke the device; leave it out with --without {name!r}"
        )
        assert "illegal memory access" in why


def test_everyone_built_in_is_right():
    both = list(bench.measure(plan(shapes.choose(["moe"], tiny=True), rounds=1)))[-1]
    errors = {each.name: max(each.errors.values()) for each in both.measured}
    assert errors.keys() == set(moe.CONTESTANTS) - {"torch grouped_mm, compiled"}
    assert max(errors.values()) < 1e-5, errors
    assert both.absent == (bench.Absent("torch grouped_mm, compiled", "compiled code is measured on a GPU only"),)
