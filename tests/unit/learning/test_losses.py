"""The loss and its gradient against the same formulas in float64 torch, and the KL penalty's by exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_rl.learning.logprobs import forward_logprobs
from jax_rl.learning.losses import loss_weights, policy_loss

OPTIONS = {"algorithm": "grpo", "clip_eps": 0.2, "kl_coef": 0.0, "kl_estimator": "k3", "entropy_coef": 0.0}
MAX_NEW_TOKENS = 8


def old_logprobs(data, logp, seed=5):
    """Those of a policy some way off, so that some ratios are clipped on either side."""
    noise = np.random.default_rng(seed).normal(0, 0.4, data.mask.shape)
    return jnp.where(data.mask, logp + noise, 0.0)


def torch_loss(params, data, old, aggregation, options):
    """The whole way from weights to loss, written independently in float64; (loss, gradients)."""
    torch.set_num_threads(1)
    p = {k: torch.tensor(np.asarray(v), dtype=torch.float64, requires_grad=True) for k, v in params.items()}
    total = torch.zeros((), dtype=torch.float64)
    data, old = jax.tree.map(np.asarray, (data, old))
    lengths = [int(row.sum()) for row in data.mask]
    for row, length in enumerate(lengths):
        real = np.flatnonzero(data.positions[row] >= 0)
        ids = torch.tensor(data.tokens[row, real], dtype=torch.long)
        x = p["embed"][ids]
        seen = torch.cumsum(x, 0) / torch.arange(1, len(ids) + 1)[:, None]
        log_p = torch.log_softmax(torch.tanh((x + seen) @ p["mix"].T) * p["norm"] @ p["embed"].T, -1)
        terms = []
        for column in range(length):
            after = len(ids) - length + column
            lp, a = log_p[after - 1, ids[after]], float(data.advantages[row, column])
            ratio = torch.exp(lp - float(old[row, column]))
            if options["algorithm"] == "reinforce":
                term = -lp * a
            else:
                bounded = torch.clamp(ratio, 1 - options["clip_eps"], 1 + options["clip_eps"])
                term = -torch.minimum(ratio * a, bounded * a)
            d = lp - float(data.ref_logp[row, column])
            k3 = ratio * (torch.exp(-d) - 1 + d)
            kl = {"k1": d, "k2": ratio.detach() * d**2 / 2, "k3": k3}[options["kl_estimator"]]
            entropy = -(log_p[after - 1].exp() * log_p[after - 1]).sum()
            terms.append(term + options["kl_coef"] * kl - options["entropy_coef"] * entropy)
        scale = {"sequence_mean": 1 / (length * len(lengths)), "token_mean": 1 / sum(lengths)}
        total = total + sum(terms) * scale.get(aggregation, 1 / (len(lengths) * MAX_NEW_TOKENS))
    total.backward()
    return total.item(), {k: v.grad.numpy() for k, v in p.items()}


@pytest.mark.parametrize(
    ("algorithm", "estimator", "aggregation"),
    [
        ("grpo", "k3", "sequence_mean"),
        ("grpo", "k2", "token_mean"),
        ("grpo", "k1", "constant"),
        ("reinforce", "k3", "token_mean"),
    ],
)
def test_loss_and_gradient_equal_those_of_torch(toy, algorithm, estimator, aggregation):
    options = OPTIONS | {"algorithm": algorithm, "kl_estimator": estimator, "kl_coef": 0.3, "entropy_coef": 0.05}
    params, data = toy.init(), jax.tree.map(jnp.asarray, toy.batch(6))

    def logprobs(params):
        return forward_logprobs(toy.forward, toy.unembed, params, data.tokens, data.positions, data.mask, remat=None)

    old = old_logprobs(data, np.asarray(logprobs(params)[0]))

    @jax.jit
    def loss_of(params):
        logp, entropy = logprobs(params)
        weights = jnp.asarray(loss_weights(np.asarray(data.mask), aggregation, MAX_NEW_TOKENS))
        return policy_loss(logp, old, data.ref_logp, entropy, data.advantages, data.mask, weights, **options)

    (loss, sums), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    right_loss, right_gradients = torch_loss(params, data, old, aggregation, options)
    np.testing.assert_allclose(loss, right_loss, atol=2e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, right_gradients[name], atol=5e-6)
    assert sums["token_count"] == data.mask.sum()
    if algorithm == "grpo":
        assert 0 < sums["clip_fraction"] < sums["token_count"]


def expected_penalty_gradient(estimator, theta, old, reference):
    """The mean over all tokens that `old` can draw, each with its exact probability, of the loss's gradient."""
    column = (3, 1)
    mask, zeros = jnp.ones(column, bool), jnp.zeros(column)

    def loss_of(theta):
        return policy_loss(
            jax.nn.log_softmax(theta).reshape(column),
            old.reshape(column),
            reference.reshape(column),
            zeros,
            zeros,
            mask,
            jnp.exp(old).reshape(column),
            **OPTIONS | {"kl_coef": 1.0, "kl_estimator": estimator},
        )[0]

    return jax.jit(jax.grad(loss_of))(theta)


@pytest.mark.parametrize("on_policy", [True, False])
def test_the_kl_penalty_descends_the_kl_divergence(on_policy):
    theta = jnp.array([0.7, -0.4, 0.2])
    reference = jax.nn.log_softmax(jnp.array([-0.6, 0.9, 0.1]))
    old = jax.nn.log_softmax(theta if on_policy else jnp.array([0.2, 0.3, -0.5]))

    def kl(theta):
        log_p = jax.nn.log_softmax(theta)
        return jnp.sum(jnp.exp(log_p) * (log_p - reference))

    right = jax.jit(jax.grad(kl))(theta)
    assert jnp.linalg.norm(right) > 0.1
    for estimator in ("k2", "k3"):
        np.testing.assert_allclose(expected_penalty_gradient(estimator, theta, old, reference), right, atol=1e-6)
    k1 = expected_penalty_gradient("k1", theta, old, reference)
    assert jnp.linalg.norm(k1 - right) > 0.1
    if on_policy:
        np.testing.assert_allclose(k1, jnp.zeros(3), atol=1e-7)  # no force at all


def test_a_clipped_token_gets_no_gradient_and_is_counted():
    ratios, advantages = np.array([[1.5, 1.5, 0.5, 0.5, 1.1]]), jnp.array([[1.0, -1.0, 1.0, -1.0, 1.0]])
    logp, zeros = jnp.log(jnp.asarray(ratios, jnp.float32)), jnp.zeros((1, 5))
    mask, weights = jnp.ones((1, 5), bool), jnp.full((1, 5), 0.2)

    def loss_of(logp):
        return policy_loss(logp, zeros, None, zeros, advantages, mask, weights, **OPTIONS)

    gradient, sums = jax.jit(jax.grad(loss_of, has_aux=True))(logp)
    np.testing.assert_allclose(gradient, [[0, 0.3, -0.1, 0, -0.22]], atol=1e-6)
    assert sums["clip_fraction"] == 2
    np.testing.assert_allclose(sums["approx_kl"], np.sum(ratios - 1 - np.log(ratios)), rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce"])
def test_nothing_outside_the_mask_is_used(algorithm):
    mask = jnp.array([[True, False], [True, True]])
    weights = jnp.asarray(loss_weights(np.asarray(mask), "token_mean", 2))
    options = OPTIONS | {"algorithm": algorithm, "kl_coef": 0.5, "entropy_coef": 0.1}
    rng = np.random.default_rng(0)
    clean = [jnp.where(mask, rng.normal(size=mask.shape), 0.0) for _ in range(5)]

    @jax.jit
    def run(logp, old, ref, entropy, advantages):
        return policy_loss(logp, old, ref, entropy, advantages, mask, weights, **options)

    right, right_gradient = jax.value_and_grad(run, has_aux=True)(*clean)
    garbage = [jnp.where(mask, a, bad) for a, bad in zip(clean, [-np.inf, 1e30, np.nan], strict=False)]
    got, gradient = jax.value_and_grad(run, has_aux=True)(*garbage, *clean[3:])
    assert jax.tree.all(jax.tree.map(np.array_equal, (got, gradient), (right, right_gradient)))


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_weights_are_those_of_their_names(aggregation):
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    values = np.array([[1, 2, 3, 9], [10, 9, 9, 9], [9, 9, 9, 9]], np.float32)
    right = {"sequence_mean": (2 + 10) / 2, "token_mean": 16 / 4, "constant": 16 / (2 * 5)}[aggregation]
    np.testing.assert_allclose(np.sum(values * loss_weights(mask, aggregation, 5)), right, rtol=1e-6)
    assert not np.any(loss_weights(np.zeros((2, 3), bool), aggregation, 5))


def test_a_kl_penalty_without_a_reference_is_refused():
    zeros, mask = jnp.zeros((1, 1)), jnp.ones((1, 1), bool)
    with pytest.raises(ValueError, match="kl_coef is 0.1 but there are no reference logprobs"):
        policy_loss(zeros, zeros, None, zeros, zeros, mask, zeros, **OPTIONS | {"kl_coef": 0.1})
