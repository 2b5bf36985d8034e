"""A plan counts what it says it counts."""

import numpy as np
import pytest

from dreamer4.config import load
from dreamer4.run import cost
from dreamer4.types import ActionSpec, DataSpec
from dreamer4_cli import data_plan


def test_hours_and_bytes_grow_with_frames_and_fall_with_rates():
    config, spec = load("catch"), DataSpec((10, 5, 1), ActionSpec((3,)))
    rates = cost.Rates(opened=1000.0, in_order=500.0, at_random=100.0, size=7.0)
    few, many = (
        {s.name: s for s in cost.stages(config, spec, rates, frames, tflops)}
        for frames, tflops in ((3.6e6, 1.0), (7.2e6, 4.0))
    )
    assert few["as recorded"].size == 7 * 3.6e6 and many["as recorded"].size == 7 * 7.2e6
    assert [few[n].hours for n in few if n.startswith(("open", "decode"))] == pytest.approx([1, 2, 10])
    tokens = config.tokenizer.num_latents * config.tokenizer.latent_dim
    assert few["encode"].size == 2 * tokens * 3.6e6
    assert many["encode"].hours == pytest.approx(few["encode"].hours / 2)
    assert many["train dynamics"].hours == pytest.approx(few["train dynamics"].hours / 4)


def test_a_sample_is_measured_and_told(tmp_path, capsys):
    np.savez(
        tmp_path / "a.npz",
        image=np.zeros((200, 10, 5, 1), np.uint8),
        action=np.arange(200) % 3,
        is_last=np.arange(200) % 50 == 49,
    )
    config = load("catch")
    data_plan.plan(tmp_path / "a.npz", config, hours=10, rate=20, tflops=1, cores=2, devices=1, shard=1e6)
    told = capsys.readouterr().out
    assert "720,000 frames, from a sample of 200" in " ".join(told.split()) and "imagination" in told
