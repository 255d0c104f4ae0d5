"""The scikit-learn classifier: scikit-learn's own checks, and that it is the same run as on the command line."""

from __future__ import annotations

import csv
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from semisynth.cli import main
from semisynth.errors import UserError
from semisynth.estimator import EXPECTED_FAILED_CHECKS, SemiSynthClassifier
from semisynth.recipes.config import Config
from semisynth.weights import read_json

SMALL = {"steps": 2, "batch": 8, "unlabeled_batch": 8}
X, Y = load_digits(return_X_y=True)
X, Y = X[:120], Y[:120]


def few(method: str = "supervised", **parameters) -> SemiSynthClassifier:
    return SemiSynthClassifier(method, **{**SMALL, **parameters})


def same(one: SemiSynthClassifier, other: SemiSynthClassifier) -> bool:
    weights = (dict(each.model_.state_dict()) for each in (one, other))
    first, second = weights
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def fitted() -> SemiSynthClassifier:
    return few().fit(X, Y)


@pytest.mark.parametrize("method, steps", [("supervised", 2), ("fixmatch", 2), ("mpssl", 1)])
def test_scikit_learns_own_checks_fail_only_where_that_is_told(method, steps):
    found = check_estimator(
        few(method, steps=steps), expected_failed_checks=EXPECTED_FAILED_CHECKS, on_fail=None, on_skip=None
    )
    failed = {each["check_name"]: each["exception"] for each in found if each["status"] in ("failed", "xfail")}
    assert failed.keys() == EXPECTED_FAILED_CHECKS.keys(), failed
    assert "y has one class only, 1 (-1 is no label)" in str(failed["check_classifiers_classes"])
    assert len(found) > 50 and {"check_array_api_input"} >= {
        each["check_name"] for each in found if each["status"] == "skipped"
    }


@pytest.mark.parametrize("method", ["mpssl", "fixmatch", "supervised"])
def test_it_is_the_run_of_the_command_line_bitwise(method, tmp_path):
    images, labels = (X[:, :36] / 16).reshape(-1, 6, 6), np.where(np.arange(120) % 3, Y, -1)
    np.savez(tmp_path / "arrays.npz", images=images, labels=labels)
    options = ["--size", "6", "--holdout", "0", "--mirror", "no", "--seed", "3", "--lr", "0.1"]
    options += [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options += ["--generator", "glyphs"] if method == "mpssl" else []
    out = tmp_path / "run"
    data = str(tmp_path / "arrays.npz")
    assert main(["fit", "--method", method, "--data", data, *options, "--out", str(out)]) == 0
    classifier = few(method, random_state=3, lr=0.1)
    if method == "fixmatch":
        classifier.fit(images, labels)
    else:
        with pytest.warns(UserWarning, match=f"method '{method}' .* the 40 images without a label are not used"):
            classifier.fit(images, labels)
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in classifier.model_.state_dict().items())
    there = read_json(out / "config.json")
    assert {k: v for k, v in classifier.config_.items() if there.get(k) != v} == {"data": "arrays", "channels": "gray"}
    assert classifier.result_["data"]["images"] == read_json(out / "result.json")["data"]["images"]


def test_rows_images_and_colours_are_one_thing(fitted):
    images = X.reshape(-1, 8, 8)
    for form in (images, images[..., None], X.astype(np.float32), X.tolist()):
        again = few().fit(form, Y)
        assert same(fitted, again) and again.n_features_in_ == 64 and again.image_shape_ == (8, 8, 1)
        assert np.array_equal(again.predict_proba(form), fitted.predict_proba(X))
    colours = np.repeat(images[..., None], 3, -1)
    by_image = few().fit(colours, Y)
    by_row = few(image_shape=(8, 8, 3)).fit(colours.reshape(120, -1), Y)
    assert same(by_image, by_row) and by_row.image_shape_ == (8, 8, 3) and by_row.n_features_in_ == 192
    assert not same(by_row, few(image_shape=(4, 16, 3)).fit(colours.reshape(120, -1), Y))


def test_the_range_of_fit_is_that_of_predict(fitted):
    assert fitted.range_ == (0.0, 16.0)
    eight, one = np.rint(X * 255 / 16).astype(np.uint8), X / 16
    by_byte, by_share = few().fit(eight, Y), few().fit(one, Y)
    assert by_byte.range_ == (0.0, 255.0) and by_share.range_ == (0.0, 1.0)
    assert same(fitted, by_byte) and same(fitted, by_share)
    assert np.array_equal(fitted.predict_proba(X[:9]), by_byte.predict_proba(eight[:9]))
    assert np.array_equal(fitted.predict_proba(X[:9]), by_share.predict_proba(one[:9]))


def test_classes_are_given_back_as_they_came():
    names = np.array(["nine", "ten", "eleven"], object)[Y % 3]
    names[::4] = None
    classifier = few("fixmatch", steps=60, engine_options={"ema": 0.9}).fit(X, names)
    assert classifier.classes_.tolist() == ["eleven", "nine", "ten"]
    assert set(classifier.predict(X)) == {"eleven", "nine", "ten"}
    known = names != np.array(None)
    assert classifier.score(X[known], names[known]) > 0.6
    p = classifier.predict_proba(X)
    assert p.shape == (120, 3) and np.array_equal(classifier.classes_[p.argmax(1)], classifier.predict(X))


def test_images_without_a_label_are_learned_from():
    y = np.where(np.arange(120) < 30, Y, -1)
    every = few("fixmatch", method_options={"threshold": 0.0})  # an untrained network is sure of nothing
    with_them, without = every.fit(X, y), clone(every).fit(X[:30], Y[:30])
    assert not same(with_them, without)
    told, other = with_them.result_["data"], without.result_["data"]
    assert told["images"] == {"train": 30, "unlabeled": 90} and told["hash"] != other["hash"]
    synthetic = few("fixmatch", unlabeled="generator")
    with pytest.warns(UserWarning, match="the 90 images without a label are not used"):
        synthetic.fit(X, y)
    assert synthetic.config_["generator"] == "glyphs" and with_them.config_["generator"] is None


def test_a_search_over_methods_and_cross_validation():
    search = GridSearchCV(few(), {"method": ["supervised", "fixmatch"], "lr": np.array([0.03, 0.1])}, cv=2)
    search.fit(X[:60], Y[:60] % 2)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all() and len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.method == search.best_params_["method"]
    assert search.predict(X[60:]).shape == (60,)
    pipeline = make_pipeline(FunctionTransformer(np.sqrt), few("mpssl", steps=1))
    scores = cross_val_score(pipeline, X[:40], Y[:40] % 2, cv=2, error_score="raise")
    assert scores.shape == (2,) and (scores >= 0).all()


def test_the_seed_decides():
    one, other = few(random_state=np.random.RandomState(7)), few(random_state=np.random.RandomState(7))
    drawn = [each.fit(X, Y).config_["seed"] for each in (one, other, one)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert same(few(random_state=np.int64(4)).fit(X, Y), few(random_state=4).fit(X, Y))


def test_the_numbers_of_torch_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    few().fit(X, Y)
    assert torch.equal(torch.rand(3), expected) and not list(tmp_path.iterdir())


def test_saved_and_loaded_it_is_the_same(tmp_path, fitted):
    names = np.array(["cat", "dog"])[Y % 2]
    drawn = few(lr=np.float64(0.1), random_state=np.random.RandomState(1), engine_options={"ema": np.float32(0.5)})
    for i, (classifier, y) in enumerate(((fitted, Y), (drawn.fit(X, names), names))):
        path = tmp_path / "deep" / str(i)
        classifier.save(path)
        files = {"config.json", "estimator.json", "model.safetensors", "result.json"}
        assert {file.name for file in path.iterdir()} == files
        found = SemiSynthClassifier.load(path)
        assert np.array_equal(found.predict_proba(X), classifier.predict_proba(X))
        assert found.predict(X).tolist() == classifier.predict(X).tolist()
        assert found.classes_.dtype == classifier.classes_.dtype and found.range_ == classifier.range_
        assert same(clone(found).fit(X, y), classifier)
    with pytest.raises(UserError, match="give a directory that is not there"):
        fitted.save(path)


@pytest.mark.parametrize("kind", ["datetime64[D]", "datetime64[ns]", "timedelta64[s]"])
def test_classes_may_be_times(kind, tmp_path):
    names = np.array([18262, 18293]).astype(kind)[Y % 2]
    classifier = few().fit(X, names)
    classifier.save(tmp_path / "saved")
    found = SemiSynthClassifier.load(tmp_path / "saved")
    assert found.classes_.dtype == names.dtype and set(found.predict(X)) <= set(names)
    assert found.predict(X).tolist() == classifier.predict(X).tolist()
    assert found.result_["class_names"] == [str(name) for name in np.unique(names)]


def test_what_was_learned_from_arrays_is_measured_and_trained_again_on_data_that_are_given(tmp_path, fitted, capsys):
    fitted.save(tmp_path / "saved")
    again = ["fit", "--config", str(tmp_path / "saved" / "config.json"), "--out", str(tmp_path / "again")]
    for command in (["evaluate", str(tmp_path / "saved")], again):
        assert main(command) == 2
        assert "the data were arrays in memory, which no run keeps: give --data" in capsys.readouterr().err
    np.savez(tmp_path / "new.npz", images=X.reshape(-1, 8, 8) / 16, labels=Y)
    data = ["--data", str(tmp_path / "new.npz")]
    assert main(["evaluate", str(tmp_path / "saved"), *data]) == 0 == main([*again, *data])
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in fitted.model_.state_dict().items())


def test_what_is_saved_predicts_on_the_command_line(tmp_path, fitted):
    fitted.save(tmp_path / "saved")
    np.savez(tmp_path / "new.npz", images=X.reshape(-1, 8, 8) / 16)
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(tmp_path / "saved"), str(tmp_path / "new.npz"), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["label"] for row in rows] == [str(label) for label in fitted.predict(X)]
    assert float(rows[5]["probability_3"]) == pytest.approx(fitted.predict_proba(X)[5, 3], abs=1e-5)


def test_the_columns_of_a_table_have_names(tmp_path):
    table = pytest.importorskip("pandas").DataFrame(X, columns=[f"pixel {i}" for i in range(64)])
    classifier = few().fit(table, Y)
    classifier.save(tmp_path / "saved")
    for each in (classifier, SemiSynthClassifier.load(tmp_path / "saved")):
        assert each.feature_names_in_.tolist() == table.columns.tolist()
        with pytest.raises(ValueError, match="feature names should match"):
            each.predict(table.rename(columns={"pixel 3": "pixel three"}))


@pytest.mark.parametrize("content", ["{}", '{"parameters": {"steps": 2, "stepps": 3}}', "[", None])
def test_what_is_not_all_there_is_not_loaded(fitted, tmp_path, content):
    fitted.save(tmp_path / "saved")
    if content is None:
        (tmp_path / "saved" / "model.safetensors").unlink()
    else:
        (tmp_path / "saved" / "estimator.json").write_text(content)
    with pytest.raises(UserError, match=r"saved/(estimator\.json|model\.safetensors)"):
        SemiSynthClassifier.load(tmp_path / "saved")


def test_pickled_it_is_the_same(fitted):
    found = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(found.predict_proba(X), fitted.predict_proba(X))


def test_every_option_of_a_run_can_be_given():
    classifier = few("fixmatch", method_options={"threshold": 0.5}, engine_options={"clip": 1.0}, mirror=True)
    config = Config.of(json.loads(json.dumps(classifier.fit(X, Y).config_)))
    assert (config.options["threshold"], config.engine.clip, config.reading.mirror) == (0.5, 1.0, "yes")
    assert not same(classifier, few("fixmatch").fit(X, Y))


WRONG = {
    "method": ({"method": "mpsl"}, "unknown method 'mpsl': did you mean 'mpssl'"),
    "a generator": ({"method": "gan"}, "method 'gan' makes a generator, not a classifier"),
    "method option": ({"method_options": {"treshold": 1.0}}, "option of method 'supervised'"),
    "engine option": ({"engine_options": {"steps": 3}}, "unknown engine option 'steps'"),
    "type": ({"steps": 2.5}, "'steps' in the parameters is 2.5: it must be of type int"),
    "shape": ({"image_shape": (3, 3)}, "64 numbers cannot be an image of shape"),
    "no generator": ({"method": "mpssl", "generator": None}, "needs --generator"),
}


@pytest.mark.parametrize("parameters, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_told_as_a_value_error(parameters, message):
    with pytest.raises(ValueError, match=message) as told:
        few(**parameters).fit(X, Y)
    assert isinstance(told.value, UserError)


def test_images_of_another_shape_are_not_predicted(fitted):
    with pytest.raises(UserError, match=r"X has images of shape \(4, 16, 1\), those of fit had \(8, 8, 1\)"):
        fitted.predict(X.reshape(-1, 4, 16))
    with pytest.raises(ValueError, match="X has 63 features, but SemiSynthClassifier is expecting 64"):
        fitted.predict(X[:, 1:])
    with pytest.raises(NotFittedError):
        few().save("nowhere")
