from __future__ import annotations

import pytest

from benchmarks.figures import H100_BF16_TFLOPS, largest, paired, spread, train_flops_per_token, utilization


def test_spread_of_an_even_number_is_between_the_middle_ones() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0]).to_dict() == {"median": 2.5, "least": 1.0, "most": 4.0, "count": 4}


def test_pairs_are_neighbouring_turns() -> None:
    # Twice as fast in every pair, while the machine slows down by ten: no ratio of medians would say 2 for both.
    ratio = paired([1.0, 10.0, 5.0], [2.0, 20.0, 10.0])
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 2.0, 2.0)


def test_half_the_work_in_half_the_time_is_as_fast() -> None:
    assert paired([1.0], [2.0], work=0.5).median == 1.0


def test_pairs_must_be_of_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired([1.0], [1.0, 2.0])


def test_flops_of_gpt3_175b_agree_with_published_figures() -> None:
    # 138 TFLOP/s per GPU with recomputation at 32 s a step of 1536 x 2048 tokens on 1024 A100 (arXiv 2104.04473,
    # section 5): 96 B s l h^2 (1 + s / 6h + V / 16lh) FLOP. Without recomputation of the blocks it is 3 / 4 of them.
    layers, hidden, length, vocab = 96, 12288, 2048, 51200
    parameters = 12 * layers * hidden**2 + vocab * hidden
    whole = 96 * layers * hidden**2 * (1 + length / (6 * hidden) + vocab / (16 * layers * hidden))
    head = 6 * vocab * hidden
    ours = train_flops_per_token(parameters, layers, hidden, length, causal=False)
    assert ours == pytest.approx(0.75 * (whole - head) + head, rel=1e-3)


def test_causal_counts_half_of_the_attention() -> None:
    full = train_flops_per_token(10, 2, 3, 5, causal=False)
    assert full == 60 + 12 * 2 * 3 * 5
    assert train_flops_per_token(10, 2, 3, 5, causal=True) == 60 + 6 * 2 * 3 * 5


def test_utilization_of_a_published_run() -> None:
    # torchtitan, Llama 3 8B on H100, 8192 tokens, 6667 tokens/s a GPU: 407 TFLOP/s, 41 % (benchmarks/llama3_h100).
    flops = train_flops_per_token(8_030_261_248, 32, 4096, 8192, causal=False)
    assert utilization(6667, flops, H100_BF16_TFLOPS) == pytest.approx(0.41, abs=0.01)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 31, 32, 33, 100])
def test_largest_finds_the_edge(most: int) -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= most

    assert largest(fits, limit=32) == min(most, 32)
    assert len(asked) <= 12
    assert len(set(asked)) == len(asked)
    assert max(asked) <= 32
