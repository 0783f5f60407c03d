"""Log-probabilities in chunks, compared with one float64 computation."""

from __future__ import annotations

import pytest
import torch

from opd.evaluation.distributions import logprob_chunks

T = 11


@pytest.mark.parametrize(("vocab_size", "expected"), [(None, 17), (13, 13)])
def test_chunks_equal_the_whole_on_the_common_vocabulary(
    vocab_size: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd.evaluation.distributions.CHUNK_BYTES", 4 * 17 * 4)
    torch.manual_seed(0)
    models = (torch.randn(T, 6), torch.randn(20, 6)), (torch.randn(T, 5), torch.randn(17, 5))
    chunks = list(logprob_chunks(*models, vocab_size=vocab_size))
    assert len(chunks) > 2
    assert torch.cat([rows for rows, _ in chunks]).tolist() == list(range(T))
    for n, (hidden_TD, head_VD) in enumerate(models):
        whole = (hidden_TD.double() @ head_VD[:expected].double().T).log_softmax(-1)
        found = torch.cat([log_p[n] for _, log_p in chunks])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), whole, rtol=1e-5, atol=1e-6)
