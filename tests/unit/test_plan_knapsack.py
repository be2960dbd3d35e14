"""The knapsack: against brute force, and what must hold for any problem."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize_worker.planning import knapsack
from quantize_worker.planning.knapsack import Knapsack, by_budget, by_highs, by_prices, every_budget, solve


def problem(groups: int, width: int, budgets: int, tightness: float, seed: int) -> Knapsack:
    """Options that cost less the more they use; budgets between the least and the most."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), width)
    uses = rng.lognormal(0, 1, (budgets, groups * width))
    cost = 1.0 / uses.mean(axis=0) * rng.uniform(0.7, 1.3, groups * width)
    shaped = uses.reshape(budgets, groups, width)
    least, most = shaped.min(axis=2).sum(axis=1), shaped.max(axis=2).sum(axis=1)
    return Knapsack(group, cost, uses, least + tightness * (most - least))


def brute_force(one: Knapsack) -> float | None:
    """The least cost of all combinations, tried in plain Python."""
    starts = one.starts()
    costs = [
        sum(one.cost[option] for option in chosen)
        for chosen in itertools.product(*(range(a, b) for a, b in pairwise(starts)))
        if all(
            sum(row[option] for option in chosen) <= limit * (1 + 1e-9)
            for row, limit in zip(one.uses, one.budgets, strict=True)
        )
    ]
    return min(costs, default=None)


shapes = st.tuples(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.floats(-0.05, 1.1), st.integers(0, 10_000)
)


@settings(deadline=None, max_examples=150)
@given(shapes)
def test_few_options_are_solved_exactly(shape: tuple[int, int, int, float, int]) -> None:
    one = problem(*shape)
    chosen, best = solve(one), brute_force(one)
    assert (chosen is None) == (best is None)
    if chosen is not None and best is not None:
        assert list(one.group[chosen]) == list(range(one.groups))
        assert one.fits(chosen)
        assert one.cost[chosen].sum() == pytest.approx(best)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 6), st.integers(2, 4), st.floats(0.02, 0.9), st.integers(0, 10_000))
def test_dynamic_programming_is_within_a_thousandth_of_brute_force(
    groups: int, width: int, tightness: float, seed: int
) -> None:
    one = problem(groups, width, 1, tightness, seed)
    chosen, best = by_budget(one), brute_force(one)
    assert chosen is not None
    assert best is not None
    assert one.fits(chosen)
    assert best * (1 - 1e-9) <= one.cost[chosen].sum() <= best * 1.001


def test_several_budgets_are_kept_and_the_cost_is_near_the_least() -> None:
    """Too many combinations to try, too few groups for the relaxation to be close: the hard case."""
    ratios = []
    for seed in range(24):
        one = problem(7, 4, 2, 0.2 + 0.025 * seed, seed)
        chosen, best = solve(one), brute_force(one)
        assert (chosen is None) == (best is None)
        if chosen is not None and best is not None:
            assert one.fits(chosen)
            ratios.append(float(one.cost[chosen].sum()) / best)
    assert min(ratios) >= 1 - 1e-9
    assert float(np.median(ratios)) <= 1.005
    assert max(ratios) <= 1.1


@pytest.mark.parametrize("seed", range(4))
def test_many_groups_are_near_the_linear_relaxation(seed: int) -> None:
    one = problem(60, 8, 2, 0.3, seed)
    chosen = solve(one)
    assert chosen is not None
    assert one.fits(chosen)
    _, bound = knapsack.relaxed_prices(one)
    assert bound * (1 - 1e-9) <= one.cost[chosen].sum() <= bound * 1.01


@pytest.mark.parametrize("seed", range(3))
def test_a_looser_budget_never_costs_more(seed: int) -> None:
    costs = []
    for tightness in np.linspace(0.02, 1.0, 15):
        one = problem(12, 6, 1, float(tightness), seed)
        chosen = solve(one)
        assert chosen is not None
        costs.append(float(one.cost[chosen].sum()))
    assert all(later <= earlier * 1.001 for earlier, later in pairwise(costs))


def test_equal_problems_have_equal_answers_and_the_first_of_equals_wins() -> None:
    one = problem(30, 6, 2, 0.4, 1)
    first, second = solve(one), solve(one)
    assert first is not None
    assert second is not None
    assert list(first) == list(second)
    twins = Knapsack(np.array([0, 0, 1, 1]), np.ones(4), np.ones((1, 4)), np.array([5.0]))
    assert list(solve(twins)) == [0, 2]  # type: ignore[arg-type]


def test_no_groups() -> None:
    empty = Knapsack(np.zeros(0, np.intp), np.zeros(0), np.zeros((1, 0)), np.array([1.0]))
    assert list(solve(empty)) == []  # type: ignore[arg-type]
    assert solve(Knapsack(empty.group, empty.cost, empty.uses, np.array([-1.0]))) is None


def test_a_budget_of_nothing_takes_what_needs_nothing() -> None:
    one = Knapsack(np.array([0, 0, 1, 1]), np.array([1.0, 5, 1, 5]), np.array([[1.0, 0, 1, 0]]), np.zeros(1))
    assert list(solve(one)) == [1, 3]  # type: ignore[arg-type]
    assert list(by_budget(one)) == [1, 3]  # type: ignore[arg-type]


def test_budgets_that_exclude_each_other() -> None:
    """Each budget can be kept alone, both together cannot."""
    group = np.repeat(np.arange(20), 2)
    uses = np.array([[1.0, 0.0] * 20, [0.0, 1.0] * 20])
    assert solve(Knapsack(group, np.ones(40), uses, np.array([9.0, 9.0]))) is None
    assert by_highs(Knapsack(group, np.ones(40), uses, np.array([9.0, 9.0]))) is None
    both = solve(Knapsack(group, np.tile([1.0, 2.0], 20), uses, np.array([9.0, 11.0])))
    assert both is not None
    assert uses[:, both].sum(axis=1) == pytest.approx([9.0, 11.0])


def test_branch_and_bound_alone_keeps_the_budgets() -> None:
    one = problem(10, 4, 2, 0.3, 5)
    chosen, best = by_highs(one), solve(one)
    assert chosen is not None
    assert best is not None
    assert one.fits(chosen)
    assert one.cost[chosen].sum() <= 1.02 * one.cost[best].sum()


def test_where_no_table_holds_a_choice_branch_and_bound_decides() -> None:
    """The relaxation can split an option; whole ones fit in one way only."""
    group = np.repeat(np.arange(13), 2)
    rng = np.random.default_rng(3)
    uses = rng.uniform(1.0, 2.0, (3, 26))
    only = np.arange(26).reshape(13, 2)[np.arange(13), rng.integers(0, 2, 13)]
    one = Knapsack(group, rng.uniform(1, 2, 26), uses, uses[:, only].sum(axis=1) * (1 + 1e-6))
    chosen = by_prices(one)
    assert chosen is None or one.fits(chosen)
    found = solve(one)
    assert found is not None
    assert one.fits(found)


def test_one_table_has_the_best_for_every_budget() -> None:
    one = problem(6, 4, 1, 1.0, 2)
    choices = every_budget(one)
    for choice in choices[:: max(1, len(choices) // 10)]:
        use = float(one.uses[0, choice].sum())
        best = brute_force(Knapsack(one.group, one.cost, one.uses, np.array([use])))
        assert best is not None
        assert one.cost[choice].sum() <= best * 1.01
