import copy

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.core.settings import Finetune, Train
from pipeline.stages.finetune.adapt import adapt, from_scratch, members, settings
from pipeline.tables.schema import Target
from pipeline.training.loop import fit
from tests.support import samples

OTHER = Target(name="target", task="multiclass", classes=("a", "b", "c", "d", "e"))


def state(network):
    return copy.deepcopy(network.state_dict())


def same(one, other):
    return [name for name in one if torch.equal(one[name], other[name])]


def test_the_same_target_keeps_every_weight_in_a_copy():
    trained = samples.bundle(samples.sample("iris"), hidden=(6, 5))
    adapted = adapt(trained, 0, trained.target, Finetune(freeze=1), seed=1)
    assert same(state(adapted), state(trained.members[0])) == list(trained.members[0].state_dict())
    assert not {p.data_ptr() for p in adapted.parameters() if p.numel()} & {
        p.data_ptr() for p in trained.members[0].parameters()
    }
    assert [name for name, p in adapted.named_parameters() if not p.requires_grad] == ["0.weight", "0.table", "0.bias"]
    assert all(p.requires_grad for p in trained.members[0].parameters())


def test_other_classes_get_a_new_last_layer_that_the_seed_draws():
    trained = samples.bundle(samples.sample("iris"), hidden=(6, 5))
    one, again, other = (adapt(trained, 0, OTHER, Finetune(freeze=0), seed) for seed in (1, 1, 2))
    assert one[-1].weight.shape == (5, 5)
    kept = ["0.weight", "0.table", "0.bias", "3.weight", "3.bias"]
    assert (
        same({name: tensor for name, tensor in state(one).items() if name in kept}, state(trained.members[0])) == kept
    )
    assert same(state(one), state(again)) == list(state(one))
    assert same(state(one), state(other)) == kept


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [(0, []), (1, ["0.weight", "0.table", "0.bias"]), (("0.*", "*.bias"), ["0.weight", "0.table", "0.bias", "3.bias"])],
)
def test_finetuning_moves_what_is_free_and_neither_the_frozen_nor_the_source(freeze, frozen):
    of = samples.sample("mixed")
    trained = samples.bundle(of)
    source = state(trained.members[0])
    adapted = adapt(trained, 0, of.target, Finetune(freeze=freeze), seed=1)
    before = state(adapted)
    samples.train(adapted, of, samples.settings(weight_decay=0.01))
    assert same(state(adapted), before) == frozen
    assert same(state(trained.members[0]), source) == list(source)


def test_a_bundle_of_a_finetuned_network_is_not_frozen_for_the_next_one():
    trained = samples.bundle(samples.sample("mixed"), hidden=(6, 5))
    trained.members[0][0].requires_grad_(False)
    adapted = adapt(trained, 0, trained.target, Finetune(freeze=0), seed=1)
    assert all(p.requires_grad for p in adapted.parameters())


def test_a_frozen_pattern_without_a_match_and_other_classes_without_hidden_layers_are_refused():
    with pytest.raises(UserError, match=r"finetune\.freeze: no parameter matches '8\.\*'"):
        adapt(samples.bundle(samples.sample("iris")), 0, OTHER, Finetune(freeze=("8.*",)), seed=1)
    with pytest.raises(UserError, match=r"data\.transfer has other classes"):
        adapt(samples.bundle(samples.sample("iris"), hidden=()), 0, OTHER, Finetune(freeze=0), seed=1)


def test_settings_are_those_of_training_but_for_what_finetune_has_of_its_own():
    train = Train(optimizer="adam", lr=0.1, epochs=9, patience=7, weight_decay=0.3, schedule="cosine", clip=2.0)
    tuned = settings(train, Finetune(lr=0.02, epochs=4, patience=None))
    assert (tuned.lr, tuned.epochs, tuned.patience) == (0.02, 4, None)
    rest = {"lr", "epochs", "patience"}
    assert tuned.model_dump(exclude=rest) == train.model_dump(exclude=rest)


def test_each_member_of_an_ensemble_is_finetuned_from_its_own_weights():
    of = samples.sample("mixed")
    trained = samples.bundle(of, ensemble=3, numeric="ple")
    asked = samples.configuration("binary", model__ensemble=3, finetune__freeze=1)
    tuned = members(trained, of.target, asked, torch.device("cpu"))
    assert len({member.seed for member in tuned}) == 3
    for member, source in zip(tuned, trained.members, strict=True):
        assert same(state(member.network), state(source)) == list(source.state_dict())
        frozen = {name.split(".")[0] for name, p in member.network.named_parameters() if not p.requires_grad}
        assert frozen == {"1"}
    fit(tuned, of.train, of.val, of.target)
    assert len({float(member.network[-1].get_parameter("bias").detach().sum()) for member in tuned}) == 3
    new = from_scratch(trained, of.target, asked, torch.device("cpu"))
    for member, source in zip(new, trained.members, strict=True):
        kept = same(state(member.network), state(source))
        assert {name.split(".")[0] for name in kept if state(source)[name].numel()} <= {"0"}  # the bins
