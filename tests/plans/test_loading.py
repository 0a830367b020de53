"""Files of plans: those that earlier versions wrote are read, and written again as they were."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import named, residual_cnn
from tfprune.errors import PlanError
from tfprune.plans.base import Plan
from tfprune.plans.loading import load_plan

FILES = Path(__file__).parent / "files"  # written by the version before plans had a base
OF_KERAS_3_15 = {"design": "3.15"}  # an older Keras does not read the config of a layer that this one wrote
KINDS = {"channels": tfprune.ChannelPlan, "weights": tfprune.WeightPlan, "design": tfprune.DesignPlan}

TABLES = {
    "channels": """\
layer       channels    after    params    after    MACs    after
--------  ----------  -------  --------  -------  ------  -------
stem               8        7       216      189  13,824   12,096
branch_a           6        4       432      252  27,648   16,128
branch_b           8        7       432      252  27,648   16,128
logits             5        5        45       40      40       35
total             27       23     1,169      769  69,160   44,387
frozen: logits (model output)
note: a word""",
    "weights": """\
layer       weights    kept    sparsity    MACs    of kept
--------  ---------  ------  ----------  ------  ---------
stem            216      54      75.0 %  13,824      3,456
branch_a        432     288      33.3 %  27,648     18,432
total           648     342      47.2 %  41,472     21,888
note: a word""",
    "design": """\
layer       channels    design    params    design    MACs    design
--------  ----------  --------  --------  --------  ------  --------
stem               8         0       216         0  13,824         0
branch_a           6         0       432         0  27,648         0
branch_b           8         0       432         0  27,648         0
logits             5         0        45         0      40         0
head               0         5         0        20       0        15
total             27         5     1,169        20  69,160        15
note: a word""",
}


@pytest.fixture(scope="module")
def model():
    return residual_cnn()


def made_again(kind, model):
    """The plan of each kind that the files hold."""
    if kind == "channels":
        return tfprune.ChannelPlan.from_removed(model, {"branch_a": [0, 3], "stem": [1]}, notes=["a word"])
    if kind == "weights":
        masks = {
            "stem": np.arange(216).reshape(3, 3, 3, 8) % 4 == 0,
            "branch_a": np.arange(432).reshape(3, 3, 8, 6) % 3 > 0,
        }
        return tfprune.WeightPlan.from_masks(model, masks, notes=["a word"])
    inputs = keras.Input((8, 8, 3), name="image")
    outputs = layers.Dense(5, name="head")(layers.GlobalAveragePooling2D(name="mean")(inputs))
    return tfprune.DesignPlan.beside(model, keras.Model(inputs, outputs, name="design"), notes=["a word"])


@pytest.mark.parametrize("kind", named(KINDS, OF_KERAS_3_15))
def test_a_file_of_an_earlier_version_holds_the_plan_that_is_made_today(kind, model):
    plan = load_plan(FILES / f"{kind}.json")
    again = made_again(kind, model)
    assert type(plan) is KINDS[kind]
    if kind == "design":  # Keras may write its config otherwise one day
        again = KINDS[kind](**{**vars(again), "architecture": plan.architecture})
    assert plan == again
    assert str(plan) == TABLES[kind]
    assert plan.prove(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_written_byte_by_byte_as_it_was(kind, tmp_path):
    load_plan(FILES / f"{kind}.json").save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == (FILES / f"{kind}.json").read_bytes()


@pytest.mark.parametrize("kind", named(KINDS, OF_KERAS_3_15))
def test_what_every_plan_tells(kind, model):
    plan = load_plan(FILES / f"{kind}.json")
    assert isinstance(plan, Plan)
    before, after = tfprune.profile(model), tfprune.profile(plan.apply(model, weights="fresh", seed=1))
    assert plan.params == (before.params, after.params)
    assert plan.macs == (before.macs, after.macs)
    assert plan.nonzero == (before.params, after.params - (306 if kind == "weights" else 0))
    assert all(0 <= kept <= whole for layer, (whole, kept) in plan.sizes().items() if layer != "head")


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_is_missing_is_told_with_how_to_edit(kind, tmp_path):
    text = (FILES / f"{kind}.json").read_text().replace('"notes"', '"words"')
    (tmp_path / "plan.json").write_text(text)
    edit = {"channels": "ChannelPlan.from_removed", "weights": "WeightPlan.from_masks", "design": "DesignPlan.beside"}
    with pytest.raises(PlanError, match=rf"is damaged: notes is None; .* \[str\].* use {edit[kind]}"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("kind", named(KINDS, OF_KERAS_3_15))
def test_a_plan_that_does_not_fit_tells_both_costs(kind):
    other = keras.models.clone_model(residual_cnn(), input_tensors=keras.Input((9, 9, 3), name="image"))
    plan = load_plan(FILES / f"{kind}.json")
    with pytest.raises(PlanError, match=rf"does not fit .*: it tells {plan.flops[0]:,} -> {plan.flops[1]:,} FLOPs"):
        plan.apply(other, weights="fresh")


EDITS = {
    "params of a row": ("channels", lambda c: c["rows"][0].update(params=[1, 1]), "-> [0-9,]+ params, the model has"),
    "params of two rows": (
        "channels",
        lambda c: [
            row.update(params=[row["params"][0] + more, row["params"][1]])
            for row, more in zip(c["rows"], (1, -1), strict=False)
        ],
        "what it tells of '.*' is not so",
    ),
    "MACs of a row": ("channels", lambda c: c["rows"][0].update(macs=[1, 1]), "-> [0-9,]+ MACs, the model has"),
    "params of masks": ("weights", lambda c: c.update(params=[1, 1]), "tells 1 -> 1 params, the model has"),
    "MACs of masks": ("weights", lambda c: c.update(macs=[9, -1]), "tells 9 -> -1 MACs, the model has"),
    "MACs of a design": ("design", lambda c: c["rows"][-1].update(macs=[9, -1]), "MACs, the model has"),
}


@pytest.mark.parametrize("edit", named(EDITS, {"MACs of a design": "3.15"}))
def test_costs_that_somebody_edited_are_told(edit, model, tmp_path):
    kind, change, told = EDITS[edit]
    content = json.loads((FILES / f"{kind}.json").read_text())
    change(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    plan = load_plan(tmp_path / "plan.json")
    for use in (plan.prove, lambda model: plan.apply(model, weights="fresh")):
        with pytest.raises(PlanError, match=f"does not fit .*{told}.* edited"):
            use(model)


def test_a_seed_that_is_no_number_is_told(model):
    with pytest.raises(PlanError, match="seed='a' must be a whole number of at least 0"):
        load_plan(FILES / "channels.json").apply(model, weights="fresh", seed="a")
