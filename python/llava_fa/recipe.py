r"""Per-layer settings: an ordered list of regular expressions with overrides, from a YAML file.

Each rule has a ``match``: a regular expression searched anywhere in the canonical module name
(``re.search``; anchor with ``^`` and ``$`` if needed). **The first rule that matches a layer
decides about it**; later rules do not add to it. A rule either says ``skip: true`` (keep the layer
dense) or overrides fields of ``CompressionConfig``; ``compress: true`` includes layers that are
kept by default, such as ``lm_head``::

    - match: 'vision_tower\.'
      bits: 5
    - match: 'language_model\.layers\.0\.'
      skip: true
    - match: '^lm_head$'
      compress: true
      bits: 5
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .config import CompressionConfig
from .errors import RecipeError
from .modules import LinearLayer

_CONFIG_FIELDS = tuple(field.name for field in fields(CompressionConfig))
_KEYS = ("match", "skip", "compress", *_CONFIG_FIELDS)


@dataclass(frozen=True)
class Rule:
    """One entry of a recipe."""

    match: str
    skip: bool
    compress: bool
    overrides: Mapping[str, Any]

    def matches(self, name: str) -> bool:
        """Whether the expression is found anywhere in a module name."""
        return re.search(self.match, name) is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as a recipe file holds it."""
        flags = {key: True for key in ("skip", "compress") if getattr(self, key)}
        return {"match": self.match, **flags, **self.overrides}


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules; see the module's description for what they mean."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def load(cls, recipe: Recipe | str | os.PathLike[str] | Sequence[Any] | None) -> Recipe:
        """Accept a recipe, a YAML file's path, the list such a file holds, or None."""
        if recipe is None:
            return cls()
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, (str, os.PathLike)):
            return cls._parse(_read_yaml(Path(recipe)), os.fspath(recipe))
        return cls._parse(recipe, "recipe")

    @classmethod
    def _parse(cls, entries: Any, where: str) -> Recipe:
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise RecipeError(f"{where}: expected a list of rules, got {type(entries).__name__}")
        return cls(
            tuple(_parse_rule(entry, f"{where}, rule {i + 1}") for i, entry in enumerate(entries))
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Return the rules as a recipe file holds them."""
        return [rule.to_dict() for rule in self.rules]

    def resolve(
        self, layers: Mapping[str, LinearLayer], default: CompressionConfig
    ) -> dict[str, CompressionConfig | None]:
        """Give every layer its configuration, or None if it stays dense.

        Raises
        ------
        RecipeError
            A rule matches no layer, only layers that are kept anyway, or one that cannot be
            compressed.
        """
        for number, rule in enumerate(self.rules, 1):
            _check_reach(rule, number, layers)
        return {name: self._config_of(layer, default) for name, layer in layers.items()}

    def overrides_of(self, name: str) -> Mapping[str, Any]:
        """Return the settings that the rule for a layer gives; empty if it has no rule."""
        rule = next((rule for rule in self.rules if rule.matches(name)), None)
        return rule.overrides if rule else {}

    def _config_of(
        self, layer: LinearLayer, default: CompressionConfig
    ) -> CompressionConfig | None:
        rule = next((rule for rule in self.rules if rule.matches(layer.name)), None)
        if rule is None:
            return None if layer.kept else default
        if rule.skip or (layer.kept and not rule.compress):
            return None
        if layer.fixed:
            raise RecipeError(
                f"recipe: {rule.match!r} asks to compress {layer.name}, which is {layer.kept}; "
                "compressing it would break the tie, so leave it out"
            )
        return default.replace(**rule.overrides)


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML ({error})") from None


def _parse_rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, Mapping):
        raise RecipeError(f"{where}: expected keys and values, got {entry!r}")
    for key in entry:
        if key not in _KEYS:
            raise RecipeError(f"{where}: unknown key {key!r}{_suggest(str(key), _KEYS)}")
    pattern, skip, compress = entry.get("match"), entry.get("skip"), entry.get("compress")
    if not isinstance(pattern, str) or not pattern:
        raise RecipeError(f"{where}: needs 'match' with a regular expression, got {pattern!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"{where}: {pattern!r} is no regular expression ({error})") from None
    for key, flag in (("skip", skip), ("compress", compress)):
        if flag not in (None, True, False):
            raise RecipeError(f"{where}: {key} must be true or false, got {flag!r}")
    overrides = {key: entry[key] for key in _CONFIG_FIELDS if key in entry}
    if skip and (compress or overrides):
        raise RecipeError(f"{where}: skip: true cannot stand beside other settings")
    try:
        CompressionConfig().replace(**overrides)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from None
    return Rule(pattern, bool(skip), bool(compress), overrides)


def _check_reach(rule: Rule, number: int, layers: Mapping[str, LinearLayer]) -> None:
    matched = [layer for layer in layers.values() if rule.matches(layer.name)]
    if not matched:
        raise RecipeError(
            f"recipe, rule {number}: {rule.match!r} matches none of the model's {len(layers)} "
            f"linear layers{_suggest(rule.match, tuple(layers))}"
        )
    if not rule.skip and not rule.compress and all(layer.kept for layer in matched):
        raise RecipeError(
            f"recipe, rule {number}: {rule.match!r} matches only layers that are kept by default "
            f"({matched[0].name}: {matched[0].kept}); add 'compress: true' to compress them"
        )


def _suggest(wanted: str, known: Sequence[str]) -> str:
    """Name the nearest known names; a regular expression is compared as the text it looks like."""
    plain = re.sub(r"\\(.)", r"\1", wanted).strip("^$").replace(".*", "")
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.0)
    return f"; nearest: {', '.join(near)}" if near else ""
