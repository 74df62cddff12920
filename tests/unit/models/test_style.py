"""Styles of texts: mean word embeddings on the directions in which domains differ."""

import numpy as np

from detect_ai.models.style import DIMENSIONS, Style


def words(rng, pool, texts=30, length=50):
    return [rng.choice(pool, length) for _ in range(texts)]


def test_domains_differ_along_the_first_direction_whatever_their_sizes():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(40, 24)).astype(np.float32)
    texts = words(rng, np.arange(20), 300) + words(rng, np.arange(10, 30), 10)
    fitted = Style.fit(embeddings, texts, ["large"] * 300 + ["small"] * 10)
    assert fitted.table.shape == (40, DIMENSIONS)
    vectors = fitted.vectors(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    large, small = vectors[:300, 0], vectors[300:, 0]
    assert min(large.max(), small.max()) < 0 < max(large.min(), small.min())


def test_a_style_does_not_depend_on_the_other_texts_and_survives_saving(tmp_path):
    rng = np.random.default_rng(1)
    fitted = Style.fit(rng.normal(size=(30, 4)), words(rng, 30), np.repeat(["a", "b"], 15))
    texts = [*words(rng, 30, 3), np.empty(0, np.int32)]
    together, alone = fitted.vectors(texts), np.concatenate([fitted.vectors([ids]) for ids in texts])
    assert (together == alone).all()
    assert (together[-1] == 0).all()
    fitted.save(tmp_path)
    assert (Style.load(tmp_path).vectors(texts) == together).all()
