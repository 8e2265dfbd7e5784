import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdnet.runs import predictions
from sdnet.runs.files import Damaged
from sdnet.runs.predictions import Predictions, read_predictions, step_of, write_predictions

LOGITS = arrays(np.float32, (4, 12), elements=st.floats(-1e6, 1e6, width=32))
LABELS = np.array([3, 0, 11, 7])


@given(LOGITS, st.booleans())
def test_the_predicted_class_survives_rounding_and_ties(logits, near):
    if near:  # too near for float16 to tell
        logits[:, 1] = np.nextafter(logits.max(1), np.float32(-np.inf))
    found = Predictions.from_logits(logits, LABELS, "order")
    assert found.predicted.tolist() == logits.argmax(1).tolist()
    assert (found.confidence > 0).all() and (found.log_likelihood <= 0).all()
    assert np.isfinite(found.brier).all()


@pytest.mark.parametrize("kept", [True, False], ids=["logits", "too many"])
def test_what_is_read_is_what_torch_computes(tmp_path, monkeypatch, kept):
    logits = 4 * torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500) % 12
    monkeypatch.setattr(predictions, "MOST", 6000 if kept else 5999)
    parts = {name: Predictions.from_logits(logits, labels, "ab") for name in ("validation", "test")}
    for name in ("one", "two"):
        write_predictions(tmp_path / name, parts, 2.5, 70)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = read_predictions(tmp_path / "one")
    assert list(read) == ["validation", "test"] and step_of(tmp_path / "one") == 70
    found = read["test"]
    assert (len(found), found.order, found.classes) == (500, "ab", 12)
    assert (found.logits is not None) == kept
    probabilities = logits.double().softmax(1)
    assert found.predicted.tolist() == logits.argmax(1).tolist()
    assert found.confidence == pytest.approx(probabilities.max(1).values.numpy(), rel=4e-3)
    own = -F.cross_entropy(logits, labels, reduction="none").numpy()
    assert found.log_likelihood == pytest.approx(own, rel=4e-3, abs=4e-3)
    squared = (probabilities - F.one_hot(labels)).square().sum(1)
    assert found.brier == pytest.approx(squared.numpy(), rel=1e-2, abs=1e-2)
    hits = (logits.topk(5).indices == labels[:, None]).any(1)
    assert found.in_top5.tolist() == hits.tolist()
    if not kept:
        with pytest.raises(ValueError, match="logits of 500 images x 12 classes are not kept"):
            _ = found.log_probabilities


def test_a_damaged_file_is_told_from_none(tmp_path):
    assert read_predictions(tmp_path / "none") is step_of(tmp_path / "none") is None
    parts = {"test": Predictions.from_logits(np.eye(4, 12), LABELS, "ab")}
    write_predictions(tmp_path / "file", parts, 1.0, 3)
    content = (tmp_path / "file").read_bytes()
    for damaged in (
        content[: len(content) // 2],
        b"",
        content.replace(b"test_order", b"test_ordre"),
        content.replace(b"\x93NUMPY", b"no array"[:6]),
        b"\x80\x04 a pickle",
    ):
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises(Damaged, match=r"file cannot be read: (?!.*pickle)"):  # no advice to
            read_predictions(tmp_path / "file")
        assert step_of(tmp_path / "file") is None


@pytest.mark.parametrize(
    "change",
    [
        {"test_logits": np.zeros((4, 3))},
        {"test_logits": np.full((4, 12), np.nan)},
        {"test_labels": np.array([3, 0, 12, 7])},
        {"test_labels": np.zeros((4, 2), np.int64)},
        {"test_classes": np.zeros(2)},
        {"test_logits": None},
    ],
    ids=str,
)
def test_arrays_of_another_run_are_damage(tmp_path, change):
    parts = {"test": Predictions.from_logits(np.eye(4, 12), LABELS, "ab")}
    write_predictions(tmp_path / "file.npz", parts, 1.0, 3)
    arrays = dict(np.load(tmp_path / "file.npz")) | change
    np.savez(tmp_path / "file.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(Damaged, match="cannot be read: "):
        read_predictions(tmp_path / "file.npz")


def test_a_file_of_another_kind_has_no_step(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert step_of(tmp_path / "one.npy") is None
    with pytest.raises(Damaged):
        read_predictions(tmp_path / "one.npy")
