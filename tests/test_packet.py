"""Keys follow from everything that a packet's numbers depend on."""

import pytest

from kvrag.packet import Identity, Recipe, Scope, digest_fields

IDENTITY = Identity(config="c", weights="w", tokenizer="t", rope="r", dtype="bfloat16")


@pytest.mark.parametrize("field", ["config", "weights", "tokenizer", "rope", "dtype", "adapter", "codec"])
def test_every_field_of_an_identity_counts(field):
    _ = IDENTITY.digest
    changed = IDENTITY.model_copy(update={field: "other"})
    assert changed.digest != IDENTITY.digest
    assert IDENTITY.differences(changed) == [field]


@pytest.mark.parametrize(
    "change",
    [
        {"ids_before": (1,)},
        {"ids_after": (1,)},
        {"soft_before": 1},
        {"soft_after": 1},
        {"writer": True},
        {"dropped": 1},
    ],
)
def test_every_field_of_a_recipe_counts(change):
    recipe = Recipe()
    _ = recipe.digest
    assert recipe.model_copy(update=change).digest != recipe.digest


def test_keys_differ_by_identity_recipe_namespace_and_tokens():
    scopes = [
        Scope(IDENTITY, Recipe()),
        Scope(IDENTITY.model_copy(update={"weights": "v"}), Recipe()),
        Scope(IDENTITY, Recipe(soft_before=8)),
        Scope(IDENTITY, Recipe(), "tenant"),
    ]
    keys = {scope.key(ids) for scope in scopes for ids in ([1, 2], [1, 3], [1, 2, 0])}
    assert len(keys) == 12
    assert Scope(IDENTITY, Recipe()).key([1, 2]) in keys


def test_fields_do_not_run_into_each_other():
    assert digest_fields("ab", "c") != digest_fields("a", "bc")
    assert digest_fields("a", "") != digest_fields("a")


def test_a_recipe_counts_its_rows():
    assert Recipe(soft_before=8, soft_after=8).extra_tokens == 16
    assert Recipe(ids_before=(1, 1, 1, 1), dropped=4).extra_tokens == 0
    assert not Recipe(ids_before=(1,)).uses_adapter
    assert Recipe(soft_after=1).uses_adapter
