import os
import pickle
import random
import stat
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import UserError
from pipeline.core.settings import Data
from pipeline.networks.bundle import DESCRIPTION, HISTORY, WEIGHTS, load_bundle, save_bundle
from pipeline.networks.stack import predict
from tests.support import samples
from tests.support.bundles import sign

NAMES = (DESCRIPTION, WEIGHTS, HISTORY)
ROWS = [{"epoch": 1, "train_loss": 0.5, "val_loss": 1e-05}, {"epoch": 2, "train_loss": 0.25, "val_loss": 0.125}]


@pytest.fixture
def saved(tmp_path):
    save_bundle(tmp_path / "model", samples.bundle(samples.sample("mixed")), ROWS)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["iris", "breast_cancer", "diabetes", "mixed"])
@pytest.mark.parametrize("hidden", [(), (6, 5)])
def test_a_loaded_bundle_is_the_saved_one_and_predicts_the_same_bit_for_bit(tmp_path, name, hidden):
    of = samples.sample(name)
    bundle = samples.bundle(of, hidden=hidden, dropout=0.3, activation="selu")
    fitted = samples.train(bundle.members[0], of, samples.settings())
    save_bundle(tmp_path, bundle, fitted.history)
    loaded = load_bundle(tmp_path)
    for part in ("model", "schema", "target", "params"):
        assert getattr(loaded, part) == getattr(bundle, part)
    assert not loaded.members[0].training
    table = of.raw.drop(columns="target" if name != "mixed" else "sold")
    pd.testing.assert_frame_equal(loaded.predict(table), bundle.predict(table), check_exact=True)
    assert torch.equal(predict(loaded.members, of.test), predict(bundle.members, of.test))
    assert pd.read_csv(tmp_path / HISTORY).to_dict("records") == [pytest.approx(row) for row in fitted.history]


@pytest.mark.parametrize("scaling", ["standard", "robust", "quantile"])
def test_a_loaded_bundle_keeps_the_scaling(tmp_path, scaling):
    of = samples.make(samples.mixed(), Data(source="mixed", target="sold", task="binary", scaling=scaling))
    bundle = samples.bundle(of)
    save_bundle(tmp_path, bundle, ROWS)
    loaded = load_bundle(tmp_path)
    pd.testing.assert_frame_equal(loaded.predict(of.raw), bundle.predict(of.raw), check_exact=True)
    x_num, x_cat = loaded.preprocessor.transform(of.features.iloc[of.rows["test"]], loaded.schema)
    assert torch.equal(x_num, of.test.x_num)
    assert torch.equal(x_cat, of.test.x_cat)


def test_predictions_are_those_of_the_network_on_the_prepared_rows():
    of = samples.sample("diabetes")
    bundle = samples.bundle(of)
    outputs = predict(bundle.members, of.test)[0][:, 0].double().numpy()
    table = of.raw.iloc[of.rows["test"]]
    assert bundle.predict(table)["prediction"].to_numpy() == pytest.approx(
        outputs * of.target.std + of.target.mean, rel=1e-6
    )


def test_two_saves_give_the_same_bytes_and_a_save_replaces_the_whole_bundle(tmp_path):
    bundle = samples.bundle(samples.sample("mixed"))
    save_bundle(tmp_path / "one", samples.bundle(samples.sample("mixed"), seed=1), ROWS[:1])
    for name in ("one", "two"):
        save_bundle(tmp_path / name, bundle, ROWS)
    for name in NAMES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(NAMES)
    load_bundle(tmp_path / "one")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_bundle(tmp_path, samples.bundle(samples.sample("mixed")), ROWS)
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in NAMES} == {mode}


# ---------------------------------------------------------------------------------------------- torn, changed, false


def refused(folder, name, content):
    """Loading with this content in place of the file must end in one line that names the folder."""
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(UserError) as caught:
            load_bundle(folder)
    finally:
        path.write_bytes(whole)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_byte_is_refused_wherever_it_is(saved, name):
    whole, rng = (saved / name).read_bytes(), random.Random(name)
    places = {0, len(whole) - 1, *rng.sample(range(len(whole)), min(60, len(whole)))}
    for place in places:
        for flip in (1, 0x80, rng.randrange(1, 256)):
            refused(saved, name, whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
    load_bundle(saved)


@pytest.mark.parametrize("name", NAMES)
def test_a_torn_or_lengthened_file_is_refused(saved, name):
    whole = (saved / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], whole + b"\n", whole + whole):
        refused(saved, name, content)


@pytest.mark.parametrize(
    ("found", "put"),
    [(b"\n", b"\r\n"), (b"\n", b"\r"), (b"e-05", b"e905"), (b"0.3", b"NaN"), (b'"seed"', b'"se\\u0065d"')],
)
def test_a_description_of_other_bytes_is_refused_though_it_may_mean_the_same(tmp_path, found, put):
    bundle = samples.bundle(samples.sample("mixed"), dropout=0.3)
    bundle.params["train.weight_decay"] = 1e-05
    save_bundle(tmp_path, bundle, ROWS)
    whole = (tmp_path / DESCRIPTION).read_bytes()
    assert found in whole
    refused(tmp_path, DESCRIPTION, whole.replace(found, put))
    refused(tmp_path, DESCRIPTION, whole.replace(found, put, 1))


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"{}", b'{"sha256": 1}', b"[" * 100_000, b"\xff\xfe{}", b"1" * 5000]
)
def test_a_file_that_is_no_description_is_refused(saved, content):
    refused(saved, DESCRIPTION, content)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"{saved} is not a bundle: it has no {name}"):
        load_bundle(saved)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'nowhere'} is not a bundle"):
        load_bundle(tmp_path / "nowhere")


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_a_pickle_in_place_of_weights_is_refused_and_never_run_even_with_fitting_sums(saved):
    refused(saved, WEIGHTS, pickle.dumps(Exploit()))
    (saved / WEIGHTS).write_bytes(pickle.dumps(Exploit()))
    sign(saved)
    with pytest.raises(UserError, match=f"^{saved}.*(cannot be loaded|is not a safetensors|holds no preprocessor)"):
        load_bundle(saved)


@pytest.mark.parametrize("change", ["renamed", "missing", "shape", "no preprocessor"])
def test_weights_that_do_not_fit_the_description_are_refused_even_with_fitting_sums(saved, change):
    tensors = load_file(saved / WEIGHTS)
    match change:
        case "renamed":
            tensors["network.9.weight"] = tensors.pop("network.3.weight")
        case "missing":
            del tensors["network.0.table"]
        case "shape":
            tensors["network.3.weight"] = tensors["network.3.weight"].T.contiguous()
        case "no preprocessor":
            tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("network.")}
    save_file(tensors, saved / WEIGHTS)
    sign(saved)
    with pytest.raises(UserError, match=f"^{saved}.*(cannot be loaded|is not a safetensors|holds no preprocessor)"):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 1, "format 1"),
        ("model", {"hidden": "wide"}, "cannot be loaded"),
        ("scaling", "log", "cannot be loaded"),
    ],
)
def test_a_description_of_another_form_is_refused_even_with_fitting_sums(saved, key, value, message):
    sign(saved, lambda body: body.update({key: value}))
    with pytest.raises(UserError, match=message) as caught:
        load_bundle(saved)
    assert str(saved) in str(caught.value)


# ------------------------------------------------------------------------------------------------------- predicting


LABELS = [["no", "yes"], [7, -3], [0.5, 2.25], [True, False], [1.0, 2.0], ["日本", "|<b>$x$"]]


@pytest.mark.parametrize("labels", LABELS)
def test_labels_come_back_with_the_type_they_had_in_the_table(tmp_path, labels):
    table = samples.mixed()
    table["sold"] = [labels[value == "yes"] for value in table["sold"]]
    of = samples.make(table, Data(source="mixed", target="sold", task="binary"))
    bundle = samples.bundle(of)
    save_bundle(tmp_path, bundle, ROWS)
    for predictor in (bundle, load_bundle(tmp_path)):
        predicted = predictor.predict(table.drop(columns="sold"))
        # Whole numbers are integers, whether or not a missing value made them floats in the table.
        whole = labels == [1.0, 2.0]
        assert predicted["prediction"].dtype == (np.int64 if whole else table["sold"].dtype)
        assert set(predicted["prediction"]) <= set(labels)
        assert list(predicted.columns) == ["prediction", *(f"probability_{label}" for label in of.target.classes)]


@pytest.mark.parametrize("name", ["iris", "mixed"])
def test_probabilities_sum_to_one_and_the_prediction_is_the_likeliest(name):
    of = samples.sample(name)
    predicted = samples.bundle(of).predict(of.raw)
    chances = predicted.filter(like="probability_").to_numpy()
    assert chances.sum(1) == pytest.approx(np.ones(len(of.raw)), abs=1e-6)
    assert predicted["prediction"].tolist() == [of.target.classes[code] for code in chances.argmax(1)]


def test_rows_keep_their_order_whatever_the_index_and_the_other_columns():
    of = samples.sample("mixed")
    bundle, order = samples.bundle(of), np.random.default_rng(0).permutation(200)
    whole = bundle.predict(of.raw)
    shuffled = of.raw.iloc[order].drop(columns="sold")[["shop", "weight", "size", "colour"]].assign(more=1)
    expected = whole.iloc[order].reset_index(drop=True)
    pd.testing.assert_frame_equal(bundle.predict(shuffled), expected, rtol=1e-5)
    one_by_one = pd.concat([bundle.predict(of.raw.iloc[[row]]) for row in range(5)], ignore_index=True)
    pd.testing.assert_frame_equal(one_by_one, whole.head(5), rtol=1e-5)


@pytest.mark.parametrize("name", ["iris", "mixed", "diabetes"])
def test_no_rows_in_are_no_rows_out(name):
    of = samples.sample(name)
    predicted, full = (samples.bundle(of).predict(table) for table in (of.raw.head(0), of.raw))
    assert len(predicted) == 0
    assert predicted.dtypes.tolist() == full.dtypes.tolist()


def test_a_missing_column_and_a_value_that_does_not_fit_are_named():
    of = samples.sample("mixed")
    with pytest.raises(UserError, match=r"new\.csv lacks the column 'colour'; did you mean 'color'"):
        samples.bundle(of).predict(of.raw.rename(columns={"colour": "color"}), "new.csv")
    wrong = of.raw.astype({"size": object})
    wrong.loc[3, "size"] = "large"
    with pytest.raises(UserError, match=r"new\.csv, row 4: 'size' must be a number, got 'large'"):
        samples.bundle(of).predict(wrong, "new.csv")


def test_unseen_categories_and_missing_values_get_a_prediction():
    of = samples.sample("mixed")
    table = of.raw.head(3).assign(colour=["mauve", None, "red"], size=[1.0, np.nan, 2.0])
    assert samples.bundle(of).predict(table).notna().all(axis=None)


@pytest.mark.parametrize("name", ["mixed", "wine", "diabetes"])
@pytest.mark.parametrize("model", [{"numeric": "ple"}, {"numeric": "plr"}, {"categories": "embedding"}])
def test_a_bundle_of_several_members_holds_them_all_and_the_mean_of_their_predictions(tmp_path, name, model):
    of = samples.sample(name)
    bundle = replace(samples.bundle(of, ensemble=3, **model), temperature=1.5)
    save_bundle(tmp_path, bundle, ROWS)
    loaded = load_bundle(tmp_path)
    assert len(loaded.members) == 3
    assert loaded.temperature == 1.5
    assert torch.equal(predict(loaded.members, of.test), predict(bundle.members, of.test))
    plain = replace(loaded, temperature=1.0)
    each = [replace(plain, members=(member,)).predict(of.raw).drop(columns="prediction") for member in loaded.members]
    if name != "diabetes":
        mean = sum(frame.to_numpy() for frame in each) / 3
        assert plain.predict(of.raw).drop(columns="prediction").to_numpy() == pytest.approx(mean, abs=1e-6)


def test_a_loaded_member_is_a_plain_sequential(saved):
    (member,) = load_bundle(saved).members
    assert type(member) is torch.nn.Sequential
