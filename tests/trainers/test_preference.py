"""DPO and SimPO: losses and gradients are TRL's, passes do not change them, pairs come back after
a stop, and bad settings are told.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.peers import trl_preference
from tests import tiny
from tests.lms import PAD, random_lm, random_rows
from visa_core.config import DPOConfig, SimPOConfig
from visa_core.data.schema import DataError
from visa_core.models.rewriter import Rewriter
from visa_core.training.checkpoint import CheckpointError
from visa_core.training.preference import PairRow, PairScorer, backward, reference_logprobs
from visa_core.training.preference_losses import PairLogprobs, dpo_losses, simpo_losses
from visa_core.training.preference_pairs import prepare_pairs
from visa_trainers import dpo, simpo

CONFIG = DPOConfig(
    model=Path("m"), data=("embedded",), out=Path("o"), precision="fp32", beta=0.5, sft_weight=0.3
)
PROMPTS = random_rows((5, 1, 9, 4), seed=1)
CHOSEN = random_rows((3, 8, 1, 6), seed=2)
REJECTED = random_rows((4, 2, 7, 6), seed=3)
ROWS = [PairRow(i, *ids) for i, ids in enumerate(zip(PROMPTS, CHOSEN, REJECTED, strict=True))]
REFERENCE = (torch.tensor([-9.0, -25.0, -4.0, -18.0]), torch.tensor([-13.0, -7.0, -22.0, -17.0]))


@pytest.fixture(scope="module")
def trl() -> None:
    reason = trl_preference.why_not()
    if reason is not None:
        pytest.skip(reason)


def padded(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, ids and the mask of completions of right-padded rows, chosen before rejected."""
    rows = [(r.prompt, r.chosen) for r in ROWS] + [(r.prompt, r.rejected) for r in ROWS]
    texts = [torch.tensor(prompt + completion) for prompt, completion in rows]
    masks = [torch.tensor([0] * len(p) + [1] * len(c)) for p, c in rows]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
    mask = nn.utils.rnn.pad_sequence(masks, batch_first=True)
    here = nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
    logits = model(input_ids=ids, attention_mask=here, use_cache=False).logits
    return logits, ids, mask


def ours(model: nn.Module, losses, config, budget: int = 4096) -> tuple[float, dict]:
    trained = copy.deepcopy(model)
    scorer = PairScorer(trained, PAD, "fp32")
    metrics = backward(scorer, ROWS, REFERENCE, losses, replace(config, token_budget=budget))
    return float(metrics["loss"]), {n: p.grad for n, p in trained.named_parameters()}


def assert_same(model: nn.Module, theirs: torch.Tensor, mine: tuple[float, dict]) -> None:
    theirs.backward()
    assert mine[0] == pytest.approx(theirs.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        largest = weight.grad.abs().max()
        assert (mine[1][name] - weight.grad).abs().max() <= 2e-5 * largest + 1e-7, name


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_dpo_is_trls_in_loss_and_gradients(trl: None, kind: str, loss_type: str) -> None:
    """qwen3 goes through packed rows, gemma2 (capped scores) through padded ones."""
    model = random_lm(kind, seed=4, std=0.3)
    theirs = trl_preference.dpo_loss(
        *padded(model), REFERENCE, beta=0.5, loss_type=loss_type, sft_weight=0.3
    )
    mine = ours(model, partial(dpo_losses, beta=0.5, loss_type=loss_type), CONFIG)
    assert_same(model, theirs, mine)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_is_trls_in_loss_and_gradients(trl: None, smoothing: float) -> None:
    model = random_lm("llama", seed=4, std=0.3)
    settings = {"beta": 2.0, "gamma": 1.0, "label_smoothing": smoothing}
    theirs = trl_preference.simpo_loss(*padded(model), **settings)
    config = SimPOConfig(model=Path("m"), data=("embedded",), out=Path("o"), precision="fp32")
    mine = ours(model, lambda pairs, _: simpo_losses(pairs, **settings), config)
    assert_same(model, theirs, mine)


def test_smoothed_dpo_expects_labels_to_be_wrong_that_often() -> None:
    """The smoothed loss is the mean over labels that are swapped with the given chance."""
    torch.manual_seed(0)
    sums = torch.randn(2, 5, dtype=torch.float64) * 3
    count = torch.ones(5)
    pairs = PairLogprobs(
        chosen=sums[0], rejected=sums[1], chosen_tokens=count, rejected_tokens=count
    )
    swapped = PairLogprobs(
        chosen=sums[1], rejected=sums[0], chosen_tokens=count, rejected_tokens=count
    )
    nothing = (torch.zeros(5), torch.zeros(5))
    right, _ = dpo_losses(pairs, nothing, beta=0.7)
    wrong, _ = dpo_losses(swapped, nothing, beta=0.7)
    smoothed, _ = dpo_losses(pairs, nothing, beta=0.7, label_smoothing=0.2)
    assert torch.allclose(smoothed, 0.8 * right + 0.2 * wrong)


def test_splitting_a_step_into_passes_does_not_change_it() -> None:
    model = random_lm("qwen3", seed=4, std=0.3)
    short = replace(CONFIG, max_prompt=9, max_completion=8)
    losses = partial(dpo_losses, beta=0.5)
    whole, split = ours(model, losses, short), ours(model, losses, short, budget=25)
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    for name, grad in whole[1].items():
        assert (split[1][name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-8, name


def test_reference_logprobs_are_the_models_own() -> None:
    model = random_lm("qwen3", seed=4, std=0.3)
    logits, ids, mask = padded(model)
    picked = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    sums = (picked * mask[:, 1:]).sum(1)
    scorer = PairScorer(copy.deepcopy(model), PAD, "fp32")
    chosen, rejected = reference_logprobs(scorer, ROWS, budget=30)
    assert torch.allclose(torch.cat([chosen, rejected]), sums, rtol=1e-4)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_small_system(tmp_path_factory.mktemp("system"))
    stopping(folder / "rewriter")
    return folder


def stopping(folder: Path) -> None:
    """Make an untrained rewriter end its texts: the stop token rises along the mean state."""
    rewriter = Rewriter.from_pretrained(folder)
    model = rewriter.model
    with torch.no_grad():
        ids = torch.arange(len(rewriter.tokenizer))[None]
        mean = model.model(input_ids=ids[:, :150]).last_hidden_state[0].mean(0)
        model.lm_head.weight[rewriter.tokenizer.eos_token_id] = 4.5 * mean / mean.norm() ** 2
    rewriter.save_pretrained(folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tasks(tmp_path_factory.mktemp("data") / "tasks.jsonl", n=20)


def settings(system: Path, tasks: Path, out: Path, **more) -> dict:
    return {
        "model": system / "rewriter",
        "data": (f"jsonl:{tasks}",),
        "out": out,
        "max_prompt": 160,
        "max_completion": 48,
        "precision": "fp32",
        "device": "cpu",
        "steps": 6,
        "batch_size": 4,
        "lr": 3e-3,
        **more,
    }


def ranked(system: Path, tasks: Path, out: Path, **more) -> DPOConfig:
    judges = {"detector": system / "detector", "fact_analyzer": system / "fact_analyzer"}
    return DPOConfig(
        **settings(system, tasks, out, samples=3, pairs="ranked", min_margin=0.0, **more), **judges
    )


def test_source_pairs_put_the_reference_before_the_response(
    system: Path, tasks: Path, tmp_path: Path
) -> None:
    config = DPOConfig(**settings(system, tasks, tmp_path / "run"))
    pairs = prepare_pairs(config, Rewriter.from_pretrained(config.model))
    records = [json.loads(line) for line in tasks.read_text().splitlines()]
    wanted = [r for r in records if r["reference"] != r["response"]]
    assert [p.chosen for p in pairs] == [r["reference"] for r in wanted]
    assert [p.rejected for p in pairs] == [r["response"] for r in wanted]


def test_training_raises_the_chosen_above_the_rejected(
    system: Path, tasks: Path, tmp_path: Path
) -> None:
    out = dpo.train(DPOConfig(**settings(system, tasks, tmp_path / "run", steps=12, beta=0.5)))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "policy and reference are the same"
    assert rows[-1]["accuracy"] == 1.0 and rows[-1]["margin"] > 0.5


def test_ranked_pairs_come_back_after_a_stop(system: Path, tasks: Path, tmp_path: Path) -> None:
    """A file cut in the middle is completed with the pairs that it had."""
    rewriter = Rewriter.from_pretrained(system / "rewriter")
    rewriter.max_prompt, rewriter.max_completion = 160, 48
    config = ranked(system, tasks, tmp_path / "run")
    whole = prepare_pairs(config, rewriter)
    assert whole and all(pair.margin >= 0 and pair.chosen != pair.rejected for pair in whole)
    path = config.out / "pairs.jsonl"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert prepare_pairs(replace(config, resume=True), rewriter) == whole
    assert path.read_text() == text


def test_dpo_that_stopped_repeats_the_uninterrupted_run(
    system: Path, tasks: Path, tmp_path: Path
) -> None:
    """Stopped at a checkpoint and resumed: equal weights. SimPO trains on the same pairs."""
    first = ranked(system, tasks, tmp_path / "one", save_every=2)
    dpo.train(first)
    broken = replace(first, out=tmp_path / "two")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visa_trainers.preference.write_result", stop)
        with pytest.raises(KeyboardInterrupt):
            dpo.train(broken)
    with pytest.raises(CheckpointError, match="unfinished run"):
        dpo.train(broken)
    dpo.train(replace(broken, resume=True))
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    pairs = {"pair_file": tmp_path / "one" / "pairs.jsonl"}
    out = simpo.train(SimPOConfig(**settings(system, tasks, tmp_path / "simpo", **pairs)))
    assert (out / "pairs.jsonl").read_bytes() == pairs["pair_file"].read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"beta": 0.0}, "--beta must be above 0"),
        ({"label_smoothing": 0.5}, r"--label-smoothing must be in \[0, 0.5\)"),
        ({"pairs": "ranked"}, "--pairs ranked needs --detector and --fact-analyzer"),
        ({"token_budget": 100}, "less than one pair may have"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "goes with --loss-type sigmoid alone"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"zero": 1}, "preference training runs on one device in fp32"),
        ({"weights": "bf16"}, "preference training runs on one device in fp32"),
    ],
)
def test_bad_settings_are_told(more: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CONFIG, **more)


def test_bad_pair_files_are_told(system: Path, tasks: Path, tmp_path: Path) -> None:
    rewriter = Rewriter.from_pretrained(system / "rewriter")
    config = DPOConfig(**settings(system, tasks, tmp_path / "o", pair_file=tmp_path / "none"))
    with pytest.raises(DataError, match="no such file; --pair-file"):
        prepare_pairs(config, rewriter)
    bad = tiny.write_lines(
        tmp_path / "bad.jsonl", [{"key": "a", "query": "q", "response": "r", "chosen": "c"}]
    )
    with pytest.raises(DataError, match="pair 'a': field 'rejected'"):
        prepare_pairs(replace(config, pair_file=bad), rewriter)
