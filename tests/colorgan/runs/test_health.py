"""Health: silent in the band, one sentence an episode, and what pretraining logs for it."""

from pathlib import Path

import pytest
import torch
from helpers.toy import ToyLoader, toy_recipe, train_toy

from colorgan.distributed.ranks import Ranks
from colorgan.runs.health import REPORTS_TO_WARN, HealthWatch
from colorgan.runs.log import read_log
from colorgan.tasks.gan_losses import lab_colorfulness
from colorgan.tasks.pretraining import pretrain

WELL = {
    "discriminator_accuracy/real": 0.8,
    "discriminator_accuracy/fake": 0.7,
    "gradient_norm/generator": 2.0,
    "colourfulness/output": 0.08,
    "colourfulness/data": 0.1,
    "saturated/output": 0.001,
}


def test_a_healthy_run_hears_nothing() -> None:
    watch = HealthWatch()
    assert all(watch.judge(WELL) == [] for _ in range(100))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"discriminator_accuracy/real": 1.0, "discriminator_accuracy/fake": 0.99},
            "discriminator accuracy is 0.995",
        ),
        (
            {"discriminator_accuracy/real": 0.1, "discriminator_accuracy/fake": 0.1},
            "takes real images for fake",
        ),
        ({"colourfulness/output": 0.01}, "nearly grey"),
        ({"colourfulness/output": 0.3}, "too strong"),
        ({"saturated/output": 0.4}, "share of saturated output is 0.4"),
        (
            {"gradient_norm/generator": 100.0},
            "gradient norm of the generator is 100 (usual: 0.1 to 40)",
        ),
        ({"gradient_norm/generator": 1e-6}, "nearly stopped learning"),
    ],
)
def test_one_sentence_an_episode(values: dict[str, float], says: str) -> None:
    watch = HealthWatch()
    for _ in range(20):
        watch.judge(WELL)

    for _ in range(2):  # two episodes
        heard = [watch.judge({**WELL, **values}) for _ in range(REPORTS_TO_WARN + 3)]
        assert [len(each) for each in heard] == [0] * (REPORTS_TO_WARN - 1) + [1] + [0] * 3
        assert says in heard[REPORTS_TO_WARN - 1][0]
        assert watch.judge(WELL) == []


def test_one_noisy_report_is_not_told() -> None:
    watch = HealthWatch()
    bad = {**WELL, "saturated/output": 0.9}
    assert [watch.judge(values) for values in (bad, bad, WELL) * 10] == [[]] * 30


def test_colorfulness_in_lab_is_that_of_the_paper() -> None:
    ab_B2HW = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3
    for ab, ours in zip(ab_B2HW, lab_colorfulness(ab_B2HW), strict=True):
        spread = (ab[0].var(correction=0) + ab[1].var(correction=0)).sqrt()
        distance = (ab[0].mean() ** 2 + ab[1].mean() ** 2).sqrt()
        assert float(ours) == pytest.approx(
            float(spread + 0.37 * distance),
            rel=1e-5,
        )

    assert float(lab_colorfulness(torch.zeros(1, 2, 4, 4))) == 0.0


def test_pretraining_logs_what_is_judged(tmp_path: Path) -> None:
    _, _, reports = train_toy(
        toy_recipe(tmp_path),
        Ranks.single(),
        num_steps=1,
        micro_batch_size=4,
    )

    assert reports[0].keys() >= WELL.keys()
    assert reports[0]["colourfulness/data"] > 0


def test_a_warning_is_an_event_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colorgan.tasks.colorization.SATURATED", 0.0)
    recipe = toy_recipe(tmp_path)
    pretrain(
        recipe, Ranks.single(), total_images=48, data_digest="abc", train=ToyLoader(8, 8), val=None
    )
    events = [line for line in read_log(tmp_path) if line["kind"] == "event"]

    assert any(
        "share of saturated output is 1 (usual: at most 0.05)" in event["text"] for event in events
    )
    assert len({event["text"].split(" is ")[0] for event in events}) == len(events)  # once each


def test_a_rate_far_under_its_best_is_told_once() -> None:
    watch = HealthWatch()
    rates = [100.0] * 8 + [30.0] * 5
    heard = [watch.judge_rate(rate, wait_share=0.0) for rate in rates]
    assert [sentence for sentence in heard if sentence] == [
        "training computes 30 images/s, of 100 at its best: other processes may be using this "
        "machine's cores. Lower --launch.torch_threads, or run fewer of them"
    ]


def test_a_slow_loader_is_no_sign_of_busy_cores() -> None:
    watch = HealthWatch()
    assert not any(watch.judge_rate(100.0, wait_share=0.0) for _ in range(8))
    assert not any(watch.judge_rate(30.0, wait_share=0.7) for _ in range(8))
