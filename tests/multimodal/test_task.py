"""Phase 2 through the trainer of phase 1: what it begins with, keeps, resumes and refuses."""

import json
import re
from pathlib import Path

import pytest
import torch

import deim
from deim.config.loader import load_config
from deim.engine.checkpoints import read_checkpoint, save_checkpoint
from deim.engine.ema import EmaSchedule
from deim.engine.trained_detector import load_trained
from deim.engine.validation import Validation
from deim.errors import CheckpointError, ConfigError, StopSignalError
from multimodal.task import detector_alone
from multimodal.wrapper import TextFusedDetector
from tests.model.tiny import random_images


def evaluated(*scores: float):
    """Validations with these values of AP, one after the other, the last of them from then on."""
    left = list(scores)

    def validate(model) -> Validation:
        value = left.pop(0) if len(left) > 1 else left[0]
        return Validation(
            ap=value, ap50=value, worst_class=None, worst_class_ap50=None, summary={}, class_ap50={}
        )

    return lambda custom: validate


def weights_of(path: Path, *, prefix: str) -> dict[str, torch.Tensor]:
    state = read_checkpoint(path).inference_weights
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_a_run_scores_the_detector_first_trains_the_head_and_keeps_the_detector(
    phase2_config, build_phase2, tiny_run
):
    trainer = build_phase2(phase2_config())
    trainer.train()
    before = dict(read_checkpoint(tiny_run / "best.pth").inference_weights)
    after = weights_of(trainer.checkpoints.last_path, prefix="detector.")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    head = weights_of(trainer.checkpoints.last_path, prefix="head.")
    assert head["gate"].all()
    lines = [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]
    start, *epochs = lines
    assert start["event"] == "start"
    assert set(start["class_ap50"]) == {"pit", "scratch", "crack"}
    # Both were scored on the same images.
    assert start["ap"] == pytest.approx(read_checkpoint(tiny_run / "best.pth").best.score, abs=1e-6)
    assert start["ap"] > 0
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    assert set(epochs[0]["terms"]) == {"loss_mal", "loss_contrastive", "loss_margin", "loss_anchor"}


@pytest.mark.parametrize(
    ("scores", "best_epoch"),
    [
        pytest.param((0.5, 0.4, 0.5, 0.3), None, marks=pytest.mark.slow),
        ((0.5, 0.4, 0.6, 0.55), 1),
        pytest.param((0.5, 0.51, 0.52, 0.52), 2, marks=pytest.mark.slow),
    ],
)
def test_best_is_written_only_on_a_higher_score_than_the_detectors(
    phase2_config, build_phase2, scores, best_epoch
):
    trainer = build_phase2(phase2_config(), validate=evaluated(*scores))
    trainer.train()
    assert trainer.checkpoints.best_path.is_file() == (best_epoch is not None)
    if best_epoch is not None:
        assert read_checkpoint(trainer.checkpoints.best_path).epoch == best_epoch


@pytest.mark.slow
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(phase2_config, build_phase2, tmp_path):
    whole = build_phase2(phase2_config(f"output_dir={tmp_path / 'whole'}"), validate=evaluated(0.2, 0.1))
    whole.train()
    calls = []

    def stop_in_validation(custom):
        def validate(model):
            calls.append(None)
            if len(calls) == 2:  # the first scores the detector
                raise StopSignalError(15, "")
            return evaluated(0.2 if len(calls) == 1 else 0.1)(custom)(model)

        return validate

    config = phase2_config()
    stopped = build_phase2(config, validate=stop_in_validation)
    with pytest.raises(StopSignalError):
        stopped.train()
    again = build_phase2(config, resume_from=stopped.checkpoints.last_path, validate=stop_in_validation)
    assert again.progress.start_score == 0.2
    again.train()
    assert not again.checkpoints.best_path.exists()
    first, other = (
        read_checkpoint(path).model for path in (whole.checkpoints.last_path, again.checkpoints.last_path)
    )
    assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_the_class_head_learns_from_its_epoch_on(phase2_config, build_phase2):
    config = phase2_config("task.class_head_from_epoch=2")
    changes = []

    def watch(custom):
        def validate(model):
            changes.append(model.class_head_delta.weight.abs().max().item())
            return custom(model)

        return validate

    build_phase2(config, validate=watch).train()
    # Before the run, and after each of three epochs.
    assert changes[:3] == [0.0, 0.0, 0.0]
    assert changes[3] > 0


@pytest.mark.slow
def test_epochs_of_the_fusion_alone_do_not_depend_on_a_class_head_to_come(
    phase2_config, build_phase2, tmp_path
):
    heads = []
    for start in ("2", "null"):
        config = phase2_config(
            "epochs=2" if start == "null" else "epochs=3",
            f"task.class_head_from_epoch={start}",
            "schedule={warmup_steps: 0, flat_epochs: 2}",
            f"output_dir={tmp_path / start}",
        )
        states = []

        def watch(custom, states=states):
            def validate(model):
                states.append({name: value.clone() for name, value in model.head.state_dict().items()})
                return custom(model)

            return validate

        trainer = build_phase2(config, validate=watch)
        # Averages depend on the length of the run: the weights themselves do not.
        trainer.run.ema.schedule = EmaSchedule(decay=0.0, warmup_steps=0)
        trainer.train()
        heads.append(states[:3])
    for first, other in zip(*heads, strict=True):
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(heads[0][0]["gate"], heads[0][2]["gate"])


@pytest.mark.parametrize("cache", ["true", "false"])
def test_the_detector_never_gets_more_images_at_once_than_evaluation(
    phase2_config, build_phase2, monkeypatch, cache
):
    sizes = []
    run = TextFusedDetector.run_detector
    monkeypatch.setattr(
        TextFusedDetector, "run_detector", lambda self, images: sizes.append(len(images)) or run(self, images)
    )
    options = ["data.batch_size=2", "data.effective_batch_size=6", "data.eval_batch_size=2", "epochs=1"]
    build_phase2(phase2_config(*options, f"task.cache={cache}")).train()
    assert set(sizes) == {2}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.resize=letterbox", "data.resize: got letterbox, the detector was trained with stretch."),
        (
            "data.scaling={type: percentile}",
            "data.scaling: got {'type': 'percentile', 'low': 0.5, 'high': 99.5}, the detector was",
        ),
        ("data.std=[1, 1, 1]", "data.std: got [1.0, 1.0, 1.0], the detector was trained with [0.229"),
        (
            "data.tiles={size: 64}",
            "data.tiles: got {'size': 64, 'overlap': 0.2, 'keep_fraction': 0.5}, the detector was trained "
            "with null. Remove the option.",
        ),
    ],
)
def test_images_prepared_otherwise_are_refused(phase2_config, build_phase2, override, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        build_phase2(phase2_config(override))


@pytest.mark.slow
def test_a_checkpoint_gives_back_the_fused_detector_and_the_detector_within(
    phase2_config, build_phase2, tiny_run
):
    trainer = build_phase2(phase2_config())
    trainer.train()
    trained = load_trained(trainer.checkpoints.last_path)
    assert isinstance(trained.model, TextFusedDetector)
    images = random_images(2)
    with torch.no_grad():
        fused, expected = trained.model(images), trainer.run.ema.model(images)
        alone = detector_alone(trained).model(images)
        original = load_trained(tiny_run / "best.pth").model(images)
    assert torch.equal(fused["pred_logits"], expected["pred_logits"])
    assert not torch.equal(fused["pred_logits"], alone["pred_logits"])
    assert torch.equal(fused["pred_boxes"], alone["pred_boxes"])
    assert torch.equal(alone["pred_logits"], original["pred_logits"])
    assert trained.task_state["text_bank"]["class_names"] == ["pit", "scratch", "crack"]
    assert trained.task_state["detector"]["path"] == str(tiny_run / "best.pth")


@pytest.mark.slow
def test_the_detector_of_any_task_is_loaded_the_same_way(phase2_config, build_phase2):
    trainer = build_phase2(phase2_config("epochs=1"))
    trainer.train()
    detector = deim.load_detector(trainer.checkpoints.last_path)
    assert isinstance(detector.trained.model, TextFusedDetector)


@pytest.mark.slow
def test_a_resumed_run_refuses_another_detector_and_other_texts(phase2_config, build_phase2, tmp_path):
    config = phase2_config("epochs=1")
    build_phase2(config).train()
    last = Path(config.output_dir) / "last.pth"
    detector = read_checkpoint(Path(config.task.detector))
    for state in (detector.model, detector.ema.model):
        state["decoder.dec_score_head.1.bias"] += 1
    other = tmp_path / "other.pth"
    save_checkpoint(detector, other)
    changed = phase2_config("epochs=1", f"task.detector={other}", f"output_dir={tmp_path / 'new'}")
    with pytest.raises(CheckpointError, match=r"task\.detector: other weights"):
        build_phase2(changed, resume_from=last)
    prompts = tmp_path / "prompts.yml"
    prompts.write_text(prompts.read_text().replace("round red dent", "deep red dent"))
    with pytest.raises(CheckpointError, match="text bank: other texts or another encoder"):
        build_phase2(phase2_config("epochs=1"), resume_from=last)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task.cached_views=3"],
            "task.cached_views: got 3, but without augmentation they are all the same. Use 1, or set "
            "augment.horizontal_flip.",
        ),
        (
            ["task.class_head_from_epoch=3"],
            "task.class_head_from_epoch: got 3, but epochs count from 0 and the last one is 2. Use an "
            "earlier one, or null.",
        ),
        (
            ["image_size=96", "schedule.low_resolution={image_size: 64, epochs: 1}"],
            "schedule.low_resolution: got 64x64, but text fusion stores the detector's output at one size. "
            "Set it to null.",
        ),
        (
            ["image_size=96", "augment.mix_up=0.5", "augment.multi_scale=0.25"],
            "augment.mix_up: got 0.5, but text fusion stores the detector's output of single "
            "images. Set it to 0.\n"
            "augment.multi_scale: got 0.25, but text fusion stores the detector's output of single "
            "images. Set it to 0.",
        ),
        (
            ["schedule.no_aug_epochs=1", "schedule.matcher_change_epoch=2"],
            "schedule.no_aug_epochs: got 1. This task has no such stage. Leave it 'auto'.\n"
            "schedule.matcher_change_epoch: got 2. This task has no such stage. Leave it 'auto'.",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(phase2_config, build_phase2, overrides, message):
    config = phase2_config(*overrides)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_phase2(config)
    assert not Path(config.output_dir).exists()


def test_a_detector_that_is_not_there_is_named_with_the_remedy(phase2_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = (
        f"task.detector: there is no checkpoint outputs/x.pth (looked in {tmp_path}). Train the "
        f"detector first, or name the best.pth of one with --set task.detector=PATH."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_config(phase2_file, ["task.detector=outputs/x.pth"])


@pytest.mark.slow
def test_a_fused_detector_is_no_detector_to_begin_from(phase2_config, phase2_file, build_phase2, tiny_run):
    trainer = build_phase2(phase2_config("epochs=1"))
    trainer.train()
    last = trainer.checkpoints.last_path
    message = (
        f"{last}: already has text fusion. Name the detector that it was made from with "
        f"--set task.detector={tiny_run / 'best.pth'}"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_config(phase2_file, [f"task.detector={trainer.checkpoints.last_path}"])


@pytest.mark.slow
def test_data_of_other_classes_are_refused(phase2_config, build_phase2, write_coco, tmp_path):
    root = write_coco(tmp_path / "other", categories={"pit": 3, "crack": 7, "scratch": 90})
    message = "train.json: has the classes pit, crack, scratch, the detector "
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        build_phase2(phase2_config(f"data.root={root}"))
