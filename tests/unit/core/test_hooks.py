"""A gradient's hook works while its object lives, and keeps neither it nor the model alive."""

import gc
import weakref

import torch
from torch import nn

from bessemer.core.hooks import when_accumulated
from bessemer.parallel.buckets import Buckets
from bessemer.train.optimizers import Optimizers


class Seen:
    def __init__(self, parameters):
        self.parameters, self.found = list(parameters), []
        for parameter in self.parameters:
            when_accumulated(parameter, self.see)

    def see(self, parameter):
        self.found.append(parameter)


def backward(model):
    model(torch.randn(2, 3)).sum().backward()


def test_it_is_called_with_each_parameter_while_its_object_lives():
    model = nn.Linear(3, 3)
    seen = Seen(model.parameters())
    backward(model)
    assert {id(p) for p in seen.found} == {id(p) for p in model.parameters()}
    left = weakref.ref(seen)
    del seen
    gc.collect()
    assert left() is None
    backward(model)  # and nothing is called


def released(model):
    moving = Optimizers([torch.optim.SGD(model.parameters(), 0.1)])
    moving.update_in_backward(lambda: None)
    return moving


def summed(model):
    sums = Buckets(model.parameters(), group=None)
    sums.expect()
    sums.waits = False
    return sums


def test_what_hooks_itself_onto_parameters_is_freed_with_the_model():
    for made in (Seen, released, summed):
        model = nn.Linear(3, 3)
        holder = made(model) if made is not Seen else made(model.parameters())
        backward(model)
        left = weakref.ref(model.weight), weakref.ref(holder)
        del model, holder
        gc.collect()
        assert [each() for each in left] == [None, None], made
