# SPDX-License-Identifier: Apache-2.0
"""Model cards: text, metadata and the training summary."""

import inspect
import os
from dataclasses import fields

from huggingface_hub import ModelCard, hf_hub_download

from tests.support.helpers import tiny_hvpl
from tests.support.tiny_hub_model import SUMMARY, TinyProcessor, tiny_model
from transformers_cvis.hub.card import CardInfo, model_card, name_of_folder, read_training_summary
from transformers_cvis.hub.push import push_to_hub


def test_card_holds_usage_and_measurements(loopback_hub):
    summary = {"training_summary": SUMMARY, "license": "apache-2.0", "base_model": "tester/base"}
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny", revision="task-1", **summary)
    card = ModelCard.load(hf_hub_download("tester/tiny", "README.md", revision="task-1"))

    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "tester/base"
    assert "video-instance-segmentation" in card.data.tags
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"AP": 51.24, "AP50": 75.0}
    for text in (
        "import transformers_cvis\nfrom transformers import pipeline",
        'model="tester/tiny", revision="task-1"',
        "2: disk, star",
        "| AP | 51.24 % |",
        "On 64 held-out videos of moving shapes.",
        "Seed 7. 400 steps. 30 minutes on 2 cores.",
        "transformers-cvis train genvis_moving_shapes",
        "| Licence | apache-2.0 |",
        "Install `transformers_cvis` from its repository",
    ):
        assert text in card.text, text
    assert "pip install" not in card.text  # the package is not published
    code = card.text.split("```python\n")[1:]
    for block in code:
        compile(block.split("```")[0], "card", "exec")

    folder = os.path.dirname(hf_hub_download("tester/tiny", "training_summary.json", revision="task-1"))
    assert read_training_summary(folder) == SUMMARY


def test_a_card_without_a_summary_claims_nothing():
    card = model_card(tiny_model(), "tester/tiny", CardInfo())
    assert card.data.license == "unknown"
    assert card.data.eval_results is None
    assert "Nothing was measured." in card.text
    assert "## Training" not in card.text


def test_ap_and_ar_are_percent_and_other_metrics_stay_as_they_are():
    summary = {"metrics": {"AP75": 0.5, "AR10": 1.0, "identity_switches": 12, "AP_small": -1.0}}
    card = model_card(tiny_model(), "tester/tiny", CardInfo(training_summary=summary))
    assert "| AP75 | 50.00 % |\n| AR10 | 100.00 % |\n| identity_switches | 12 |\n" in card.text
    assert [(result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        ("AP75 (percent)", 50.0),
        ("AR10 (percent)", 100.0),
        (None, 12.0),
    ]


def test_the_title_is_the_last_part_of_the_name():
    for name in ("tester/tiny", "runs/tiny", "tiny"):
        card = model_card(tiny_model(), name, CardInfo())
        assert "\n# tiny\n" in card.content
        assert f'model="{name}"' in card.text
        assert card.data.model_name == "tiny"


def test_card_title_names_model_and_task():
    model = tiny_hvpl()
    for name in ("tester/shapes", "shapes/task-0", "shapes"):
        assert model.card_title(name) == "shapes"
    model.add_task(["moon"], num_prompts=3)
    for name in ("tester/shapes", "shapes/task-1", "shapes"):
        assert model.card_title(name) == "shapes after task-1"
    assert "\n# shapes after task-1\n" in model_card(model, "tester/shapes", CardInfo()).content


def test_sections_and_tags_are_shown():
    info = CardInfo(tags=("shapes",), sections={"Data": "Generated.", "Limits": "Small."})
    card = model_card(tiny_model(), "tester/tiny", info)
    assert "\n## Data\n\nGenerated.\n\n## Limits\n\nSmall.\n\n## Measured\n" in card.text
    assert card.data.tags[-1] == "shapes"


def test_every_field_of_a_card_is_documented():
    for field in fields(CardInfo):
        assert f"\n    {field.name} (" in inspect.cleandoc(CardInfo.__doc__), field.name


def test_the_name_of_a_folder_holds_its_parent(tmp_path, monkeypatch):
    (tmp_path / "run" / "task-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    assert name_of_folder("task-1") == name_of_folder(tmp_path / "run" / "task-1") == "run/task-1"
