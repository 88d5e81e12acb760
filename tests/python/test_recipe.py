"""Recipes: which rule decides about a layer, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_fa import CompressionConfig
from llava_fa.errors import RecipeError
from llava_fa.modules import LinearLayer
from llava_fa.recipe import Recipe

LAYERS = {
    layer.name: layer
    for layer in (
        LinearLayer("model.vision_tower.layers.0.fc1", "a", (8, 4)),
        LinearLayer("model.language_model.layers.0.mlp.up_proj", "b", (8, 4)),
        LinearLayer("model.language_model.layers.1.mlp.up_proj", "c", (8, 4)),
        LinearLayer("lm_head", "d", (8, 4), "output embedding"),
    )
}
TIED = {**LAYERS, "lm_head": LinearLayer("lm_head", "", (8, 4), "tied to another weight", True)}
DEFAULT = CompressionConfig(bits=3)


def resolve(rules: Any, layers: dict[str, LinearLayer] = LAYERS) -> dict[str, Any]:
    return Recipe.load(rules).resolve(layers, DEFAULT)


def test_no_recipe_compresses_all_but_the_kept() -> None:
    resolved = resolve(None)
    assert resolved.pop("lm_head") is None
    assert set(resolved.values()) == {DEFAULT}


def test_the_first_matching_rule_decides() -> None:
    resolved = resolve([{"match": r"layers\.0", "bits": 4}, {"match": "up_proj", "bits": 2}])
    assert resolved["model.language_model.layers.0.mlp.up_proj"] == DEFAULT.replace(bits=4)
    assert resolved["model.language_model.layers.1.mlp.up_proj"] == DEFAULT.replace(bits=2)


def test_rules_do_not_add_up() -> None:
    rules = [{"match": "vision", "rank": 1}, {"match": "tower", "bits": 5}]
    assert resolve(rules)["model.vision_tower.layers.0.fc1"] == DEFAULT.replace(rank=1)


def test_skip() -> None:
    resolved = resolve([{"match": "vision_tower", "skip": True}])
    assert resolved["model.vision_tower.layers.0.fc1"] is None
    assert resolved["model.language_model.layers.0.mlp.up_proj"] == DEFAULT


def test_match_searches_anywhere_and_can_be_anchored() -> None:
    assert resolve([{"match": "fc1", "bits": 5}])["model.vision_tower.layers.0.fc1"].bits == 5
    with pytest.raises(RecipeError, match="matches none"):
        resolve([{"match": "^fc1", "bits": 5}])


def test_a_general_rule_leaves_kept_layers_alone() -> None:
    assert resolve([{"match": ".", "bits": 5}])["lm_head"] is None


def test_compress_includes_a_kept_layer() -> None:
    rules = [{"match": "^lm_head$", "compress": True, "bits": 5}]
    assert resolve(rules)["lm_head"] == DEFAULT.replace(bits=5)


def test_a_rule_for_kept_layers_needs_compress() -> None:
    with pytest.raises(RecipeError, match="compress: true"):
        resolve([{"match": "lm_head", "bits": 5}])


def test_a_tied_layer_cannot_be_compressed() -> None:
    with pytest.raises(RecipeError, match="tied"):
        resolve([{"match": "lm_head", "compress": True}], TIED)


def test_a_pattern_that_matches_nothing_shows_the_nearest_names() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve([{"match": r"^model\.vision_tower\.layer\.0\.fc1$", "skip": True}])
    assert "model.vision_tower.layers.0.fc1" in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("text", "no such recipe file"),
        ({"match": "a"}, "expected a list"),
        ([1], "expected keys and values"),
        ([{"bits": 3}], "needs 'match'"),
        ([{"match": ""}], "needs 'match'"),
        ([{"match": "("}], "no regular expression"),
        ([{"match": "a", "bit": 3}], "unknown key 'bit'; nearest: bits"),
        ([{"match": "a", "skip": "yes"}], "must be true or false"),
        ([{"match": "a", "skip": True, "bits": 3}], "cannot stand beside"),
        ([{"match": "a", "bits": 99}], "rule 1: .*99"),
        ([{"match": "a", "codec": "nope"}], "rule 1: .*nope"),
    ],
)
def test_mistakes(rules: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(rules)


class TestFiles:
    def test_yaml(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text("- match: 'layers\\.0\\.'\n  bits: 2.5\n- match: lm_head\n  skip: true\n")
        recipe = Recipe.load(path)
        assert recipe == Recipe.load(
            [{"match": r"layers\.0\.", "bits": 2.5}, {"match": "lm_head", "skip": True}]
        )
        assert Recipe.load(recipe.to_list()) == recipe

    def test_not_yaml(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text("- match: [")
        with pytest.raises(RecipeError, match=r"recipe\.yaml: not valid YAML"):
            Recipe.load(path)
