"""Answers to lab 07 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import math

import torch
import torch.nn.functional as F

# ---------------------------------------------------------------------------------------------------------- schedule


def schedule_counts_from_nothing(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    at = step - 1
    if at < warmup:
        return at / warmup
    if step <= steps - decay:
        return 1.0
    return final + (1 - final) * (steps - step) / decay


def schedule_last_step_still_high(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    if step <= warmup:
        return step / warmup
    left = steps - step + 1
    return final + (1 - final) * left / decay if left <= decay else 1.0


def schedule_down_too_soon(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    if step <= warmup:
        return step / warmup
    if decay == 0 or step < steps - decay:
        return 1.0
    done = (step - (steps - decay) + 1) / decay
    return max(1 - (1 - final) * done, final)


def schedule_linear(step, steps, warmup, decay, final=0.0):
    if steps < warmup + decay:
        raise ValueError("too long")
    if step <= warmup:
        return step / warmup
    return final + (1 - final) * (steps - step) / (steps - warmup)


def schedule_half_a_cosine(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    if warmup and step <= warmup:
        return step / warmup
    done = max(0, step - steps + decay) / max(1, decay)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def schedule_ends_at_nothing(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    if step <= warmup:
        return step / warmup
    return min(1.0, (steps - step) / decay) if decay else 1.0


def schedule_clamped(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    if step <= warmup:
        return step / warmup
    return min(1.0, max(final, (steps - step) / decay)) if decay else 1.0


def schedule_always_divides(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    up = step / warmup
    if step <= steps - decay:
        return up if up < 1 else 1.0
    return 1 - (1 - final) * (step - steps + decay) / decay


def schedule_never_refuses(step, steps, warmup, decay, final=0.0):
    if step <= warmup:
        return step / warmup
    if step <= steps - decay:
        return 1.0
    return 1 - (1 - final) * (step - steps + decay) / decay


def schedule_as_a_minimum(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError(f"{warmup} + {decay} > {steps}")
    up = step / warmup if warmup else 1.0
    down = final + (1 - final) * (steps - step) / decay if decay else 1.0
    return min(up, 1.0, down) if step > warmup else up


def _wsd(step, steps, warmup, decay, down, up=lambda step, warmup: step / warmup):
    """A right schedule but for its way up or down."""
    if warmup + decay > steps:
        raise ValueError("too long")
    if step <= warmup:
        return up(step, warmup)
    return down(step - (steps - decay)) if step > steps - decay else 1.0


def schedule_list_read_at_step(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    factors = [i / warmup for i in range(1, warmup + 1)] + [1.0] * (steps - warmup - decay)
    factors += [1 - (1 - final) * i / decay for i in range(1, decay + 1)]
    return factors[step]


def schedule_up_to_almost_one(step, steps, warmup, decay, final=0.0):
    return _wsd(step, steps, warmup, decay, lambda at: 1 - (1 - final) * at / decay, lambda s, w: s / (w + 1))


def schedule_two_slashes(step, steps, warmup, decay, final=0.0):
    return _wsd(step, steps, warmup, decay, lambda at: 1 - (1 - final) * at / decay, lambda s, w: s // w)


def schedule_line_backwards(step, steps, warmup, decay, final=0.0):
    return _wsd(step, steps, warmup, decay, lambda at: final + (1 - final) * at / decay)


def schedule_divides_by_steps(step, steps, warmup, decay, final=0.0):
    return _wsd(step, steps, warmup, decay, lambda at: final + (1 - final) * (decay - at) / steps)


def schedule_minus_final(step, steps, warmup, decay, final=0.0):
    return _wsd(step, steps, warmup, decay, lambda at: 1 - final * (at / decay))


def schedule_power(step, steps, warmup, decay, final=0.0):
    return _wsd(step, steps, warmup, decay, lambda at: max(final, 1e-9) ** (at / decay))


def schedule_by_linspace(step, steps, warmup, decay, final=0.0):
    return _wsd(step, steps, warmup, decay, lambda at: torch.linspace(1, final, decay)[at - 1].item())


def schedule_decays_from_step_decay(step, steps, warmup, decay, final=0.0):
    if warmup + decay > steps:
        raise ValueError("too long")
    if step <= warmup:
        return step / warmup
    return 1.0 if step <= decay else 1 - (1 - final) * (step - decay) / (steps - decay)


def schedule_wants_a_plateau(step, steps, warmup, decay, final=0.0):
    if warmup + decay >= steps:
        raise ValueError("no room for a plateau")
    return _wsd(step, steps, warmup, decay, lambda at: 1 - (1 - final) * at / decay)


# -------------------------------------------------------------------------------------------------------- accumulate


def _count(micro_batches):
    total = sum((target >= 0).sum().item() for _, target in micro_batches)
    if not total:
        raise ValueError("nothing to learn")
    return total


def accumulate_divide_by_length(model, micro_batches):
    _count(micro_batches)
    mean = 0.0
    for ids, target in micro_batches:
        loss = F.cross_entropy(model(ids).transpose(1, 2), target) / len(micro_batches)
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_skip_the_empty(model, micro_batches):
    _count(micro_batches)
    full = [(ids, target) for ids, target in micro_batches if (target != -100).any()]
    mean = 0.0
    for ids, target in full:
        loss = F.cross_entropy(model(ids).transpose(1, 2), target) / len(full)
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_forgot_to_divide(model, micro_batches):
    _count(micro_batches)
    mean = 0.0
    for ids, target in micro_batches:
        loss = F.cross_entropy(model(ids).transpose(1, 2), target)
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_all_positions(model, micro_batches):
    _count(micro_batches)
    places = sum(ids.numel() for ids, _ in micro_batches)
    mean = 0.0
    for ids, target in micro_batches:
        loss = F.cross_entropy(model(ids).transpose(1, 2), target, reduction="sum") / places
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_weighted_means(model, micro_batches):
    total, mean = _count(micro_batches), 0.0
    for ids, target in micro_batches:
        loss = F.cross_entropy(model(ids).transpose(1, 2), target) * ((target != -100).sum() / total)
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_clears_each_time(model, micro_batches):
    total, mean = _count(micro_batches), 0.0
    for ids, target in micro_batches:
        for parameter in model.parameters():
            parameter.grad = None
        loss = F.cross_entropy(model(ids).transpose(1, 2), target, reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_running_total(model, micro_batches):
    _count(micro_batches)
    seen, mean = 0, 0.0
    for ids, target in micro_batches:
        seen += (target != -100).sum().item()
        loss = F.cross_entropy(model(ids).transpose(1, 2), target, reduction="sum") / max(seen, 1)
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_adds_then_differentiates(model, micro_batches):
    total, loss = _count(micro_batches), 0
    for ids, target in micro_batches:
        loss = loss + F.cross_entropy(model(ids).transpose(1, 2), target, reduction="sum")
    (loss / total).backward()
    return (loss / total).item()


def accumulate_glued_together(model, micro_batches):
    _count(micro_batches)
    ids = torch.cat([ids for ids, _ in micro_batches])
    loss = F.cross_entropy(model(ids).transpose(1, 2), torch.cat([target for _, target in micro_batches]))
    loss.backward()
    return loss.item()


def accumulate_trusts_its_input(model, micro_batches):
    total = sum((target != -100).sum() for _, target in micro_batches)
    mean = 0.0
    for ids, target in micro_batches:
        loss = F.cross_entropy(model(ids).transpose(1, 2), target, reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_then_rescale(model, micro_batches):
    total, summed = _count(micro_batches), 0.0
    for ids, target in micro_batches:
        real = target != -100
        chosen = model(ids).log_softmax(-1).gather(-1, target.clamp_min(0)[..., None])[..., 0]
        loss = -(chosen * real).sum()
        loss.backward()
        summed += loss.item()
    for parameter in model.parameters():
        parameter.grad /= total
    return summed / total


def _learn(model, micro_batches, loss_of, factor=1.0):
    """Accumulation that is right but for the loss of a micro-batch."""
    total, mean = _count(micro_batches), 0.0
    for ids, target in micro_batches:
        loss = factor * loss_of(model(ids), target) / total
        loss.backward()
        mean += loss.item()
    return mean


def _nats(logits, target):
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="sum")


def accumulate_backward_of_the_running_loss(model, micro_batches):
    total, loss = _count(micro_batches), 0
    for ids, target in micro_batches:
        loss = loss + _nats(model(ids), target) / total
        loss.backward(retain_graph=True)
    return loss.item()


def accumulate_mean_and_then_by_length(model, micro_batches):
    return _learn(model, micro_batches, _nats, 1 / len(micro_batches))


def accumulate_items_of_an_average_batch(model, micro_batches):
    return _learn(model, micro_batches, _nats, len(micro_batches))


def accumulate_shifts_labels(model, micro_batches):
    return _learn(model, micro_batches, lambda logits, target: _nats(logits[:, :-1], target[:, 1:]))


def accumulate_unflattened(model, micro_batches):
    return _learn(model, micro_batches, lambda logits, target: F.cross_entropy(logits, target, reduction="sum"))


def accumulate_padding_as_token_0(model, micro_batches):
    return _learn(model, micro_batches, lambda logits, target: _nats(logits, target.where(target != -100, 0)))


def accumulate_of_probabilities(model, micro_batches):
    return _learn(model, micro_batches, lambda logits, target: _nats(logits.softmax(dim=2), target))


def accumulate_with_an_optimiser(model, micro_batches):
    mean, steps = 0.0, torch.optim.SGD(model.parameters(), lr=0.1)
    total = _count(micro_batches)
    for ids, target in micro_batches:
        loss = _nats(model(ids), target) / total
        loss.backward()
        steps.step()
        mean += loss.item()
    return mean


def accumulate_only_forward(model, micro_batches):
    total = _count(micro_batches)
    return sum((_nats(model(ids), target) / total).item() for ids, target in micro_batches)


def accumulate_stops_at_an_empty_one(model, micro_batches):
    for _, target in micro_batches:
        if not (target != -100).any():
            raise ValueError("nothing to learn in here")
    return _learn(model, micro_batches, _nats)


def accumulate_reports_the_last(model, micro_batches):
    total = _count(micro_batches)
    for ids, target in micro_batches:
        loss = _nats(model(ids), target) / total
        loss.backward()
    return loss.item()


# --------------------------------------------------------------------------------------------------------- recompute


def recompute_by_name_only(block, *inputs):
    return block(*inputs)


def recompute_without_grad(block, *inputs):
    with torch.no_grad():
        output = block(*inputs)
    return output


def recompute_keeps_too_much(block, *inputs):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.inputs, ctx.state = inputs, torch.random.get_rng_state()
            with torch.enable_grad():
                ctx.first = block(*[v.detach().requires_grad_(v.requires_grad) for v in inputs])
            return ctx.first.detach()

        @staticmethod
        def backward(ctx, grad):
            return _backward(block, ctx.inputs, ctx.state, grad)

    return Again.apply(*inputs)


def _backward(block, inputs, state, grad, fork=True, upstream=True):
    copies = [v.detach().requires_grad_(v.requires_grad) for v in inputs]
    with torch.random.fork_rng(devices=[], enabled=fork), torch.enable_grad():
        if state is not None:
            torch.random.set_rng_state(state)
        output = block(*copies)
    torch.autograd.backward(output, grad if upstream else torch.ones_like(grad))
    return tuple(v.grad for v in copies)


def _again(block, inputs, **how):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.state = torch.random.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx, grad):
            return _backward(block, ctx.saved_tensors, how.pop("state", ctx.state), grad, **how)

    return Again.apply(*inputs)


def recompute_new_dropout(block, *inputs):
    return _again(block, inputs, state=None, fork=False)


def recompute_new_dropout_in_a_fork(block, *inputs):
    return _again(block, inputs, state=None)


def recompute_rewinds_the_generator(block, *inputs):
    return _again(block, inputs, fork=False)


def recompute_of_the_sum(block, *inputs):
    return _again(block, inputs, upstream=False)


def recompute_with_autograd_off(block, *inputs):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.state = torch.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx, grad):
            copies = [v.detach().requires_grad_(v.requires_grad) for v in ctx.saved_tensors]
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(ctx.state)
                output = block(*copies)
            output.backward(grad)
            return tuple(v.grad for v in copies)

    return Again.apply(*inputs)


def recompute_asks_everybody(block, *inputs):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.state = torch.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx, grad):
            copies = [v.clone().detach().requires_grad_(True) for v in ctx.saved_tensors]
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.set_rng_state(ctx.state)
                block(*copies).backward(grad)
            return tuple(v.grad for v in copies)

    return Again.apply(*inputs)


def recompute_forgets_the_weights(block, x, *weights):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.state = torch.get_rng_state()
            ctx.save_for_backward(x)
            return block(x, *weights)

        @staticmethod
        def backward(ctx, grad):
            return _backward(lambda x: block(x, *[w.detach() for w in weights]), ctx.saved_tensors, ctx.state, grad)

    return Again.apply(x)


def recompute_with_backward(block, *inputs):
    return _again(block, inputs)


def recompute_reads_the_state_afterwards(block, *inputs):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = block(*inputs)
            ctx.state = torch.random.get_rng_state()
            ctx.save_for_backward(*inputs)
            return output

        @staticmethod
        def backward(ctx, grad):
            return _backward(block, ctx.saved_tensors, ctx.state, grad)

    return Again.apply(*inputs)


def recompute_not_applied(block, *inputs):
    _again(block, inputs)


def recompute_gives_a_list(block, *inputs):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.state = torch.random.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx, grad):
            return list(_backward(block, ctx.saved_tensors, ctx.state, grad))

    return Again.apply(*inputs)


def recompute_differentiates_a_scalar(block, *inputs):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.state = torch.random.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx, grad):
            copies = [v.detach().requires_grad_(v.requires_grad) for v in ctx.saved_tensors]
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.random.set_rng_state(ctx.state)
                block(*copies).backward()
            return tuple(v.grad for v in copies)

    return Again.apply(*inputs)


def recompute_looks_first(block, *inputs):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        block(*inputs)
    return _again(block, inputs)


def recompute_seeds(block, *inputs):
    torch.manual_seed(0)
    return _again(block, inputs)


# ----------------------------------------------------------------------------------------------------- newton_schulz

A, B, C = 3.4445, -4.7750, 2.0315


def _polynomial(X, steps):
    for _ in range(steps):
        S = X @ X.transpose(-1, -2)
        X = A * X + B * (S @ X) + C * (S @ (S @ X))
    return X


def schulz_norm_of_everything(matrices, steps=5):
    return _polynomial(matrices / (matrices.norm() + 1e-7), steps)


def schulz_each_row(matrices, steps=5):
    return _polynomial(F.normalize(matrices, dim=-1), steps)


def schulz_plain(matrices, steps=5):
    return _polynomial(matrices, steps)


def schulz_stays_on_its_side(matrices, steps=5):
    X = matrices
    if X.shape[-2] > X.shape[-1]:
        X = X.mT
    return _polynomial(X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7), steps)


def schulz_zero_over_zero(matrices, steps=5):
    return _polynomial(matrices / torch.linalg.matrix_norm(matrices, keepdim=True), steps)


def schulz_of_textbooks(matrices, steps=5):
    X = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        X = 1.5 * X - 0.5 * X @ X.mT @ X
    return X


def schulz_five_times(matrices, steps=5):
    return _polynomial(matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7), 5)


def schulz_stars_for_powers(matrices, steps=5):
    X = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        X = A * X + B * X.pow(3) + C * X.pow(5)
    return X


def schulz_as_muon_on_a_gpu(matrices, steps=5):
    X = matrices.to(torch.bfloat16)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        S = X @ X.mT
        X = A * X + (B * S + C * S @ S) @ X
    return X


def schulz_with_moonlights_rate(matrices, steps=5):
    X = _polynomial(matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7), steps)
    return 0.2 * math.sqrt(max(X.shape[-1], X.shape[-2])) * X


def schulz_one_at_a_time(matrices, steps=5):
    flat = matrices.flatten(0, -3) if matrices.ndim > 2 else matrices[None]
    done = []
    for X in flat:
        X = X / X.square().sum().sqrt().clamp(min=1e-7)
        for _ in range(steps):
            S = X.T @ X
            X = X @ (A * torch.eye(len(S)) + B * S + C * S @ S)
        done.append(X)
    return torch.stack(done).reshape(matrices.shape)


def _divided(matrices):
    return matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)


def schulz_forgot_the_root(matrices, steps=5):
    return _polynomial(matrices / (matrices**2).sum((-2, -1), keepdim=True).clamp(min=1e-7), steps)


def schulz_size_restored(matrices, steps=5):
    return _polynomial(_divided(matrices), steps) * matrices.norm(dim=(-2, -1), keepdim=True)


def schulz_gram_before_the_loop(matrices, steps=5):
    X = _divided(matrices)
    S = X @ X.mT
    for _ in range(steps):
        X = A * X + (B * S + C * S @ S) @ X
    return X


def schulz_gram_squared_by_stars(matrices, steps=5):
    X = _divided(matrices)
    for _ in range(steps):
        S = X @ X.mT
        X = A * X + (B * S + C * S.square()) @ X
    return X


def schulz_cube_twice(matrices, steps=5):
    X = _divided(matrices)
    for _ in range(steps):
        S = X @ X.mT
        X = A * X + B * S @ X + C * S @ X
    return X


def schulz_all_plus(matrices, steps=5):
    X = _divided(matrices)
    for _ in range(steps):
        S = X @ X.mT
        X = A * X + (abs(B) * S + C * S @ S) @ X
    return X


def schulz_once_more(matrices, steps=5):
    return _polynomial(_divided(matrices), steps + 1)


def schulz_range_from_1(matrices, steps=5):
    X = _divided(matrices)
    for _ in range(1, steps):
        X = _polynomial(X, 1)
    return X


def schulz_lost_dimensions(matrices, steps=5):
    return _polynomial(matrices / matrices.norm(dim=(-2, -1)).clamp(min=1e-7), steps)


def schulz_small_side_on_the_left(matrices, steps=5):
    X = _divided(matrices)
    for _ in range(steps):
        S = X.mT @ X
        X = A * X + (B * S + C * S @ S) @ X
    return X


# ---------------------------------------------------------------------------------------------------------- mtp_loss


def _sum(logits, target):
    return F.cross_entropy(logits[:, : target.shape[1]].transpose(1, 2), target, reduction="sum", ignore_index=-100)


def mtp_next_token(mtp_logits, labels_BS, weight):
    losses = [_sum(logits, labels_BS[:, k:]) for k, logits in enumerate(mtp_logits, 1)]
    return weight * torch.stack(losses).mean() / (labels_BS[:, 1:] != -100).sum()


def mtp_always_two(mtp_logits, labels_BS, weight):
    total = 0
    for logits in mtp_logits:
        target = labels_BS[:, 2:][:, : logits.shape[1]]
        total = total + _sum(logits, target)
    return weight * total / len(mtp_logits) / (labels_BS[:, 1:] != -100).sum()


def mtp_mean_of_each(mtp_logits, labels_BS, weight):
    losses = []
    for k, logits in enumerate(mtp_logits, 1):
        target = labels_BS[:, k + 1 :]
        losses.append(F.cross_entropy(logits[:, : target.shape[1]].flatten(0, 1), target.flatten()))
    return weight * sum(losses) / len(losses)


def mtp_each_by_its_own_number(mtp_logits, labels_BS, weight):
    total = 0
    for k, logits in enumerate(mtp_logits, 1):
        target = labels_BS[:, k + 1 :]
        total = total + _sum(logits, target) / max(1, int((target != -100).sum()))
    return weight / len(mtp_logits) * total


def mtp_adds_depths(mtp_logits, labels_BS, weight):
    losses = [_sum(logits, labels_BS[:, k + 1 :]) for k, logits in enumerate(mtp_logits, 1)]
    return weight * torch.stack(losses).sum() / (labels_BS[:, 1:] != -100).sum()


def mtp_forgets_lambda(mtp_logits, labels_BS, weight):
    losses = [_sum(logits, labels_BS[:, k + 1 :]) for k, logits in enumerate(mtp_logits, 1)]
    return torch.stack(losses).mean() / (labels_BS[:, 1:] != -100).sum()


def mtp_counts_padding(mtp_logits, labels_BS, weight):
    losses = [_sum(logits, labels_BS[:, k + 1 :]) for k, logits in enumerate(mtp_logits, 1)]
    return weight * torch.stack(losses).mean() / labels_BS[:, 1:].numel()


def mtp_counts_first_tokens(mtp_logits, labels_BS, weight):
    losses = [_sum(logits, labels_BS[:, k + 1 :]) for k, logits in enumerate(mtp_logits, 1)]
    return weight * torch.stack(losses).mean() / (labels_BS != -100).sum()


def mtp_uncut(mtp_logits, labels_BS, weight):
    total = 0
    for k, logits in enumerate(mtp_logits, 1):
        target = labels_BS[:, k + 1 :]
        total = total + F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    return weight / len(mtp_logits) * total / (labels_BS[:, 1:] != -100).sum()


def mtp_by_gather(mtp_logits, labels_BS, weight):
    B, S = labels_BS.shape
    total = mtp_logits[0].new_zeros(())
    for k in range(1, len(mtp_logits) + 1):
        logp = mtp_logits[k - 1].log_softmax(dim=-1)
        for i in range(S - k - 1):
            label_B = labels_BS[:, i + k + 1]
            real = label_B >= 0
            total = total - logp[torch.arange(B), i, label_B.clamp(min=0)][real].sum()
    return total / (labels_BS[:, 1:] >= 0).sum() * weight / len(mtp_logits)


def _depths(mtp_logits, labels_BS):
    return torch.stack([_sum(logits, labels_BS[:, k + 1 :]) for k, logits in enumerate(mtp_logits, 1)])


def _targets(labels_BS):
    return (labels_BS[:, 1:] != -100).sum()


def mtp_first_position_cut(mtp_logits, labels_BS, weight):
    losses = [_sum(logits[:, 1:], labels_BS[:, k + 1 :]) for k, logits in enumerate(mtp_logits, 1)]
    return weight * torch.stack(losses).mean() / _targets(labels_BS)


def mtp_rolls_labels(mtp_logits, labels_BS, weight):
    total = 0
    for k, logits in enumerate(mtp_logits, 1):
        target = torch.roll(labels_BS, shifts=-(k + 1), dims=1)[:, : logits.shape[1]]
        total = total + _sum(logits, target)
    return weight / len(mtp_logits) * total / _targets(labels_BS)


def mtp_counts_from_the_third(mtp_logits, labels_BS, weight):
    return weight * _depths(mtp_logits, labels_BS).mean() / (labels_BS[:, 2:] != -100).sum()


def mtp_each_sequence_alone(mtp_logits, labels_BS, weight):
    found = []
    for row in range(len(labels_BS)):
        labels = labels_BS[row : row + 1]
        alone = _depths([logits[row : row + 1] for logits in mtp_logits], labels).mean()
        found.append(alone / max(1, _targets(labels).item()))
    return weight * sum(found) / len(found)


def mtp_divides_by_length(mtp_logits, labels_BS, weight):
    return weight * _depths(mtp_logits, labels_BS).mean() / (labels_BS.shape[1] - 1)


def mtp_mean_and_lambda_over_depths(mtp_logits, labels_BS, weight):
    return weight / len(mtp_logits) * _depths(mtp_logits, labels_BS).mean() / _targets(labels_BS)


def mtp_overwrites(mtp_logits, labels_BS, weight):
    for k, logits in enumerate(mtp_logits, 1):
        total = _sum(logits, labels_BS[:, k + 1 :])
    return weight / len(mtp_logits) * total / _targets(labels_BS)


def mtp_with_the_main_head(mtp_logits, labels_BS, weight):
    return weight * _depths(mtp_logits, labels_BS).sum() / (1 + len(mtp_logits)) / _targets(labels_BS)


def mtp_minus(mtp_logits, labels_BS, weight):
    return -weight * _depths(mtp_logits, labels_BS).mean() / _targets(labels_BS)


def mtp_unflattened(mtp_logits, labels_BS, weight):
    total = 0
    for k, logits in enumerate(mtp_logits, 1):
        target = labels_BS[:, k + 1 :]
        total = total + F.cross_entropy(logits[:, : target.shape[1]], target, reduction="sum")
    return weight / len(mtp_logits) * total / _targets(labels_BS)


NEAR_MISSES = {
    "07.schedule": [
        (schedule_counts_from_nothing, "starts_at_zero"),
        (schedule_last_step_still_high, "one_step_late"),
        (schedule_down_too_soon, "one_step_early"),
        (schedule_linear, "no_plateau"),
        (schedule_half_a_cosine, "cosine"),
        (schedule_ends_at_nothing, "final_ignored"),
        (schedule_clamped, "floor"),
        (schedule_always_divides, "divides_by_warmup"),
        (schedule_never_refuses, "accepts_misfit"),
        (schedule_list_read_at_step, "one_step_ahead"),
        (schedule_up_to_almost_one, "never_reaches_one"),
        (schedule_two_slashes, "whole_division"),
        (schedule_line_backwards, "goes_up_again"),
        (schedule_divides_by_steps, "divided_by_all_steps"),
        (schedule_minus_final, "falls_by_final"),
        (schedule_power, "exponential"),
        (schedule_by_linspace, "one_interval_short"),
        (schedule_decays_from_step_decay, "decay_as_a_place"),
        (schedule_wants_a_plateau, "refuses_what_fits"),
    ],
    "07.accumulate": [
        (accumulate_divide_by_length, "mean_of_means"),
        (accumulate_skip_the_empty, "mean_of_means_without_empty"),
        (accumulate_forgot_to_divide, "means_added"),
        (accumulate_all_positions, "padding_counted"),
        (accumulate_weighted_means, "empty_is_nan"),
        (accumulate_clears_each_time, "only_the_last"),
        (accumulate_running_total, "divided_by_those_so_far"),
        (accumulate_adds_then_differentiates, "one_backward_pass"),
        (accumulate_glued_together, "one_big_batch"),
        (accumulate_trusts_its_input, "nothing_is_nan"),
        (accumulate_backward_of_the_running_loss, "running_sum_differentiated"),
        (accumulate_mean_and_then_by_length, "divided_twice"),
        (accumulate_items_of_an_average_batch, "divided_by_the_average"),
        (accumulate_shifts_labels, "shifted_again"),
        (accumulate_unflattened, "classes_in_the_wrong_place"),
        (accumulate_padding_as_token_0, "padding_learned"),
        (accumulate_of_probabilities, "softmax_twice"),
        (accumulate_with_an_optimiser, "moved_in_between"),
        (accumulate_only_forward, "gradient_missing"),
        (accumulate_stops_at_an_empty_one, "empty_refused"),
        (accumulate_reports_the_last, "only_the_report_is_wrong"),
    ],
    "07.recompute": [
        (recompute_by_name_only, "nothing_saved"),
        (recompute_without_grad, "no_gradient"),
        (recompute_keeps_too_much, "twice_and_kept"),
        (recompute_new_dropout, "other_random_numbers"),
        (recompute_new_dropout_in_a_fork, "other_random_numbers_forked"),
        (recompute_rewinds_the_generator, "generator_left_behind"),
        (recompute_of_the_sum, "upstream_ignored"),
        (recompute_with_autograd_off, "no_graph_in_backward"),
        (recompute_asks_everybody, "integers_asked"),
        (recompute_forgets_the_weights, "weights_get_nothing"),
        (recompute_reads_the_state_afterwards, "state_kept_too_late"),
        (recompute_not_applied, "no_tensor_returned"),
        (recompute_gives_a_list, "wrong_number_of_gradients"),
        (recompute_differentiates_a_scalar, "upstream_missing"),
        (recompute_looks_first, "ran_too_often"),
        (recompute_seeds, "generator_elsewhere"),
    ],
    "07.newton_schulz": [
        (schulz_norm_of_everything, "one_norm_for_all"),
        (schulz_each_row, "norm_of_rows"),
        (schulz_plain, "not_divided"),
        (schulz_stays_on_its_side, "not_turned_back"),
        (schulz_zero_over_zero, "nan_for_zero"),
        (schulz_of_textbooks, "cubic"),
        (schulz_five_times, "steps_ignored"),
        (schulz_stars_for_powers, "entry_by_entry"),
        (schulz_as_muon_on_a_gpu, "in_bfloat16"),
        (schulz_with_moonlights_rate, "scaled"),
        (schulz_forgot_the_root, "norm_squared"),
        (schulz_size_restored, "norm_given_back"),
        (schulz_gram_before_the_loop, "gram_of_the_start"),
        (schulz_gram_squared_by_stars, "gram_squared_entry_by_entry"),
        (schulz_cube_twice, "no_fifth_power"),
        (schulz_all_plus, "sign_of_b"),
        (schulz_once_more, "one_step_too_many"),
        (schulz_range_from_1, "one_step_too_few"),
        (schulz_lost_dimensions, "batch_broken"),
        (schulz_small_side_on_the_left, "gram_on_the_wrong_side"),
    ],
    "07.mtp_loss": [
        (mtp_next_token, "shifted_by_k"),
        (mtp_always_two, "all_two_ahead"),
        (mtp_mean_of_each, "mean_over_nothing"),
        (mtp_each_by_its_own_number, "own_number_of_targets"),
        (mtp_adds_depths, "depths_added"),
        (mtp_forgets_lambda, "unweighted"),
        (mtp_counts_padding, "padding_counted"),
        (mtp_counts_first_tokens, "first_token_counted"),
        (mtp_uncut, "logits_too_long"),
        (mtp_first_position_cut, "cut_at_the_front"),
        (mtp_rolls_labels, "wraps_round"),
        (mtp_counts_from_the_third, "targets_of_the_first_depth"),
        (mtp_each_sequence_alone, "sequence_by_sequence"),
        (mtp_divides_by_length, "batch_forgotten"),
        (mtp_mean_and_lambda_over_depths, "averaged_twice"),
        (mtp_overwrites, "last_depth_only"),
        (mtp_with_the_main_head, "main_head_counted"),
        (mtp_minus, "sign"),
        (mtp_unflattened, "classes_in_the_wrong_place"),
    ],
}

RIGHT_ANSWERS = {
    "07.schedule": [schedule_as_a_minimum],
    "07.accumulate": [accumulate_then_rescale],
    "07.recompute": [recompute_with_backward],
    "07.newton_schulz": [schulz_one_at_a_time],
    "07.mtp_loss": [mtp_by_gather],
}
